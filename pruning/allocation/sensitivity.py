"""Sensitivity: the widths that lose least by what was measured when each group alone was cut."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from pruning.allocation import register
from pruning.allocation.budget import TOLERANCE, Direction, at_least, project, required
from pruning.allocation.levels import Integers, Vector, choose_levels
from pruning.cost import CostModel
from pruning.curves import Curve, SensitivityRanking
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking


@register("sensitivity")
@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The widths under the budget at which the sum over the groups of the measured loss increases is the least.

    Between measured widths a curve is linear; no group gets narrower than the narrowest that was measured, and a group
    whose loss does not change gets there. Of the widths that may be chosen a mixed-integer linear program finds the
    best, with proof. Where they leave more than 1 % of the budget, the best of those that spend it are taken; and where
    there are none, the first, widened as `budget.project` does, groups that gain by it before the others. If uniform
    widths have a smaller sum, they are taken.

    The sum takes the groups for independent, which they are the less the more is cut. The rule is this project's own;
    Li et al. (ICLR 2017) read such curves by eye.

    Args:
        measure: what the curves show: the `loss` (mean cross-entropy) or the `accuracy`.
        round_to: widths are multiples of so many filters, or the group's full width.
        levels: how many widths of each group may be chosen, spread evenly; groups with fewer are searched whole.
        seconds: when to stop, with the best widths so far and a warning that says how far off they can be. Only then
            can equal arguments give other widths.
        criterion: options of the criterion `sensitivity`, which measures.
    """

    budgeted: ClassVar[bool] = True
    looks_at_ranking: ClassVar[bool] = True

    measure: Literal["loss", "accuracy"] = "loss"
    round_to: int = 1
    levels: int = 19
    seconds: float = 60.0
    criterion: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.measure not in ("loss", "accuracy"):
            raise OptionError(f"measure: expected 'loss' or 'accuracy', got '{self.measure}'")
        if self.levels < 2:
            raise OptionError(f"levels: expected at least 2, got {self.levels}")
        if not self.seconds > 0:
            raise OptionError(f"seconds: expected a number above 0, got {self.seconds}")

    @property
    def ranked_by(self) -> CriterionSpec | None:
        """The criterion whose ranking has the curves, whatever criterion chooses the channels."""
        return CriterionSpec(name="sensitivity", options=dict(self.criterion))

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`.

        Raises:
            RankingError: a ranking without curves, or with those of other groups.
        """
        curves = _curves(ranking, groups)
        least = at_least(groups, {name: float(curve.widths[0]) for name, curve in curves.items()}, self.round_to)
        even = project(groups, cost, _even(groups, least), macs, round_to=self.round_to)
        macs = required(macs)
        if macs >= cost.full.macs:
            return groups.widths
        increases = {name: self._increase(curve) for name, curve in curves.items()}
        candidates = [even, *self._found(groups, least, increases, cost, macs)]

        def order(widths: dict[str, int]) -> tuple[bool, float]:
            wasteful = cost.cost(widths).macs < (1 - TOLERANCE) * macs
            return wasteful, sum(increases[name][width] for name, width in widths.items())

        return min(reversed(candidates), key=order)

    def _found(
        self, groups: ChannelGroups, least: dict[str, int], increases: Mapping[str, Vector], cost: CostModel, macs: int
    ) -> Iterator[dict[str, int]]:
        """Yield the widths that lose least; where they leave too much of the budget, what comes near and spends it."""
        allowed = {name: self._allowed(least[name], group) for name, group in groups.items()}
        losses = {name: increases[name][widths] for name, widths in allowed.items()}
        enough = math.ceil((1 - TOLERANCE) * macs)
        best = self._choose(allowed, losses, cost, macs)
        if best is None:
            return
        yield best
        if cost.cost(best).macs < enough:
            spending = self._choose(allowed, losses, cost, macs, enough=enough)
            if spending is not None:
                yield spending
            gain = {name: increases[name][full] < increases[name][best[name]] for name, full in groups.widths.items()}
            gaining = {name: full if gain[name] else best[name] for name, full in groups.widths.items()}
            way = _through(least, best, gaining, groups.widths)
            yield project(groups, cost, way, macs, round_to=self.round_to)

    def _choose(
        self, allowed: Mapping[str, Integers], losses: Mapping[str, Vector], cost: CostModel, macs: int, enough: int = 0
    ) -> dict[str, int] | None:
        choice = choose_levels(allowed, losses, cost, macs, enough=enough, seconds=self.seconds)
        if choice.stopped:
            what = "no widths were found"
            if choice.widths is not None:
                what = (
                    f"a sum of {self.measure} up to {choice.gap:.3g} smaller may exist (mip_gap {choice.mip_gap:.2%})"
                )
            place = "allocation 'sensitivity'"
            warnings.warn(f"{place}: stopped after {self.seconds:g} s; {what}", RuntimeWarning, stacklevel=4)
        return choice.widths

    def _increase(self, curve: Curve) -> Vector:
        """Return how much worse than uncut a group is at each width, float64 `[width + 1]`."""
        worse = curve.loss if self.measure == "loss" else -curve.accuracy
        widths = curve.widths.numpy()
        increase: Vector = np.interp(np.arange(widths[-1] + 1), widths, (worse - worse[-1]).numpy())
        return increase

    def _allowed(self, least: int, group: ChannelGroup) -> Integers:
        rungs = np.array([*range(least, group.width, group.step(self.round_to)), group.width], dtype=np.int64)
        chosen = np.linspace(0, len(rungs) - 1, min(self.levels, len(rungs))).round().astype(np.int64)
        allowed: Integers = rungs[chosen]
        return allowed


def _curves(ranking: Ranking | None, groups: ChannelGroups) -> dict[str, Curve]:
    place = "allocation 'sensitivity'"
    if not isinstance(ranking, SensitivityRanking):
        got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
        raise RankingError(f"{place}: expected the curves that criterion sensitivity measures, got {got}")
    for name, width in groups.widths.items():
        if name not in ranking.curves or ranking.curves[name].widths[-1] != width:
            known = ", ".join(f"{other} {int(curve.widths[-1])}" for other, curve in ranking.curves.items())
            raise RankingError(f"{place}, group '{name}': expected the curve of {width} channels, got {known}")
    return {name: ranking.curves[name] for name in groups}


def _even(groups: ChannelGroups, least: Mapping[str, int]) -> Direction:
    return lambda t: {name: max(least[name], t * width) for name, width in groups.widths.items()}


def _through(*points: Mapping[str, int]) -> Direction:
    """Return the way from the first widths to the last ones through those between."""
    places = np.linspace(0, 1, len(points))
    return lambda t: {name: float(np.interp(t, places, [point[name] for point in points])) for name in points[0]}
