"""Move a policy to another network, onto a budget if there is one, and say what came of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import ValidationError
from yaml import YAMLError

from pruning import (
    Layout,
    ModelError,
    ModelSpec,
    Policy,
    PolicyError,
    Transferred,
    check_trusted,
    explain,
    layout_of,
    project,
    thinned_counterparts,
    transfer_policy,
)
from search.config import Experiment
from search.describe import Table, shortened, written_auxiliary, written_thinned
from search.dialect import read_yaml
from search.directions import scaled
from search.errors import SearchError
from search.layouts import layout_for, names_trusted
from search.pareto import Limits
from search.sections import by_name
from search.units import percent

LONGEST_SOURCE = 16
"""Letters of a name among several: with them a row fits into a terminal."""


@dataclass(frozen=True)
class Moved:
    """A policy beside the one that it was.

    Attributes:
        source: the policy that was moved, with its network.
        transferred: what it has become; its widths may have been taken onto a budget since.
        target: the other network.
    """

    policy: Policy
    source: Layout
    transferred: Transferred
    target: Layout

    @property
    def shares(self) -> tuple[float, float]:
        """What the cut networks cost in MACs, as parts of their own baselines': before and now."""
        pairs = ((self.policy, self.source), (self.transferred.policy, self.target))
        before, now = (layout.cost.cost(policy.widths).macs / layout.cost.full.macs for policy, layout in pairs)
        return before, now


def model_like(model: ModelSpec, text: str | None, num_classes: int | None, place: str = "--model") -> ModelSpec:
    """Return another network: a name or `{name: …, options: {…}}`, with as many classes unless told; None is the same.

    Raises:
        SearchError: no such form.
    """
    try:
        tree = model.model_dump() if text is None else by_name(read_yaml(text))
        if isinstance(tree, dict):
            classes = tree.get("num_classes", model.num_classes) if num_classes is None else num_classes
            tree = {**tree, "num_classes": classes}
        return ModelSpec.model_validate(tree)
    except ValidationError as error:
        raise SearchError(f"{place}: {explain(error, 'model', ModelSpec)}") from None
    except YAMLError:
        raise SearchError(f"{place}: expected a name, or {{name: …, options: {{…}}}}, got '{text}'") from None


def move_policy(
    policy: Policy,
    model: ModelSpec,
    experiment: Experiment | None = None,
    macs: str | None = None,
    trusted: Collection[str] = (),
) -> Moved:
    """Move a policy to another network, where the convolutions are thinned whose counterparts it thins.

    See `pruning.transfer_policy` and `pruning.thinned_counterparts`.

    Args:
        policy: what is moved.
        model: the other network.
        experiment: its images tell what the other network costs; the usual ones unless given.
        macs: what it may cost: `50%` of the other network's, or a number. All widths are scaled until they cost that.
        trusted: names of networks whose code may run; see `load_pruned`.

    Raises:
        SearchError, PruningError: networks that have nothing in common, or a budget that the widths cannot meet.
    """
    target = layout_for(model, experiment, trusted)
    source = _source(policy, experiment, trusted)
    if thinned := thinned_counterparts(policy, source.groups, target.groups):
        target = layout_for(model, experiment, trusted, thinned)
    transferred = transfer_policy(policy, source, target)
    if macs is not None:
        limit = Limits.parse(max_macs=macs).bounds["macs"]
        widths = _onto(transferred.policy, target, int(limit.of(target.cost.full.macs)))
        moved = transferred.policy.model_copy(update={"widths": widths})
        transferred = Transferred(moved, transferred.sources, transferred.unmatched)
    return Moved(policy, source, transferred, target)


def _source(policy: Policy, experiment: Experiment | None, trusted: Collection[str]) -> Layout:
    """Lay out the policy's own network: with the experiment's images where its usual ones are not told."""
    check_trusted(policy.model, names_trusted(trusted, experiment))
    try:
        return layout_of(policy.model, thinned=policy.thinned)
    except ModelError:
        return layout_for(policy.model, experiment, trusted, policy.thinned)


def _onto(policy: Policy, layout: Layout, budget: int) -> dict[str, int]:
    groups = layout.groups.only(policy.widths)
    least = {name: group.minimum for name, group in groups.items()}
    try:
        return project(groups, layout.cost, scaled(policy.widths, least, groups.widths), budget)
    except PolicyError as error:
        raise PolicyError(f"--macs: {str(error).removeprefix('budget: ')}") from None


def transfer_table(moved: Moved) -> Table:
    """Return one row for each group of the target that is named: what it keeps, and the groups that it listens to."""
    policy, groups = moved.transferred.policy, moved.target.groups
    rows = []
    for name, group in groups.only(policy.widths).items():
        sources = moved.transferred.sources[name]
        told = [
            shortened(source, LONGEST_SOURCE) + ("" if weight == 1 else f" {percent(float(weight), 0)}")
            for source, weight in sources.items()
        ]
        kept = policy.widths[name]
        rows.append([shortened(name), f"{kept}/{group.width}", percent(kept / group.width), f"← {', '.join(told)}"])
    return ["group", "kept/of", "share", "← of the policy"], rows


def transfer_lines(moved: Moved) -> dict[str, str]:
    """Return what holds for all groups, in words by what it is."""
    policy, old = moved.transferred.policy, moved.policy
    before, now = moved.shares
    lines = {"MACs": f"{policy.model.name} {percent(now)} of its own, {old.model.name} {percent(before)}"}
    if moved.transferred.unmatched:
        lines["whole"] = f"no counterpart, all channels kept: {', '.join(moved.transferred.unmatched)}"
    if policy.thinned != old.thinned:
        lines["thinned"] = f"{written_thinned(old)} → {written_thinned(policy)}"
    if policy.auxiliary != old.auxiliary:
        lines["auxiliary"] = f"{written_auxiliary(old)} → {written_auxiliary(policy)}"
    return lines
