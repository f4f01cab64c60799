"""What two policies do not have in common, group by group and value by value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pruning import Cost, CriterionSpec, Layout, Policy
from search.describe import (
    Table,
    cropped,
    shortened,
    written_auxiliary,
    written_criteria,
    written_criterion,
    written_thinned,
)
from search.units import percent

NONE = "–"
LONGEST = 14
"""Letters of a criterion where two stand in a row."""


@dataclass(frozen=True)
class GroupSide:
    """A group in one of two policies: channels kept, of so many; which criterion says which, if there are several."""

    kept: int
    width: int
    criterion: CriterionSpec | None = None


@dataclass(frozen=True)
class GroupDifference:
    """A group that two policies treat differently; None on the side whose network has no such group."""

    name: str
    first: GroupSide | None
    second: GroupSide | None


@dataclass(frozen=True)
class Difference:
    """Two policies side by side.

    Attributes:
        groups: those that differ.
        alike: how many groups both treat alike.
        values: what else differs, by its place: how it is written in the first and in the second.
        costs: of each, the network's before and after the cut.
    """

    groups: tuple[GroupDifference, ...]
    alike: int
    values: dict[str, tuple[str, str]]
    costs: tuple[tuple[Cost, Cost], tuple[Cost, Cost]]

    @property
    def is_empty(self) -> bool:
        """Whether the policies are equal."""
        return not self.groups and not self.values


def diff_policies(first: Policy, first_layout: Layout, second: Policy, second_layout: Layout) -> Difference:
    """Compare two policies, each beside the network that it is of.

    A group that a policy does not name keeps all channels, as one that it names with its full width.

    Raises:
        PolicyError: a policy for another network than its layout's.
    """
    pairs = ((first, first_layout), (second, second_layout))
    for policy, layout in pairs:
        policy.check(layout.groups)
    mixed = bool(first.criteria or second.criteria)
    sides = [{name: _side(name, policy, layout, mixed) for name in layout.groups} for policy, layout in pairs]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    both = [GroupDifference(name, sides[0].get(name), sides[1].get(name)) for name in names]
    differing = tuple(group for group in both if group.first != group.second)
    costs = [(layout.cost.full, layout.cost.cost(policy.widths)) for policy, layout in pairs]
    return Difference(differing, len(both) - len(differing), changed_values(first, second), (costs[0], costs[1]))


def _side(name: str, policy: Policy, layout: Layout, mixed: bool) -> GroupSide:
    width = layout.groups[name].width
    kept = policy.widths.get(name, width)
    return GroupSide(kept, width, policy.criterion_of(name) if mixed and kept < width else None)


def changed_values(first: Policy, second: Policy) -> dict[str, tuple[str, str]]:
    """Return everything but widths that differs, by its place: how it is written in the first and in the second."""
    one, other = _parts(first), _parts(second)
    none = (NONE, NONE)
    places = {place: (one.get(place, none), other.get(place, none)) for place in [*one, *other]}
    return {place: (a[1], b[1]) for place, (a, b) in places.items() if a[0] != b[0]}


def _parts(policy: Policy) -> dict[str, tuple[Any, str]]:
    """Return everything but the widths by place, as it is and as it is written."""
    model, recipe = policy.model, policy.recipe.model_dump(mode="json")
    criteria = Counter(policy.criteria.values())
    return {
        "model": (model.name, model.name),
        "classes": (model.num_classes, str(model.num_classes)),
        **{f"model.options.{name}": (value, repr(value)) for name, value in model.options.items()},
        "thinned": (policy.thinned, written_thinned(policy)),
        "criterion": ((policy.criterion, criteria), written_criteria(policy)),
        "auxiliary": (policy.auxiliary, written_auxiliary(policy)),
        **{f"recipe.{name}": (value, str(value)) for name, value in recipe.items()},
        "seed": (policy.seed, str(policy.seed)),
    }


def difference_table(difference: Difference) -> Table:
    """Return one row for each group that differs, A and B side by side; the criteria where they do, too."""
    mixed = any(_criteria(group) != [NONE, NONE] for group in difference.groups)
    headers = ["group", "A kept/of", "share", "B kept/of", "share", *(["A by", "B by"] if mixed else [])]
    rows = [
        [shortened(group.name), *_cells(group.first), *_cells(group.second), *(_criteria(group) if mixed else [])]
        for group in difference.groups
    ]
    return headers, rows


def difference_lines(difference: Difference) -> dict[str, str]:
    """Return what else differs, and what both cost, in words by what it is: A → B."""
    lines = {place: f"{one} → {other}" for place, (one, other) in difference.values.items()}
    for name, column in (("MACs", "macs"), ("parameters", "params")):
        sides = ((getattr(cut, column), getattr(full, column)) for full, cut in difference.costs)
        lines[name] = " → ".join(f"{cut:,} ({percent(cut / full)})" for cut, full in sides)
    count = len(difference.groups)
    return lines | {"groups": f"{count} of {count + difference.alike} differ"}


def _cells(side: GroupSide | None) -> list[str]:
    return [NONE, NONE] if side is None else [f"{side.kept}/{side.width}", percent(side.kept / side.width)]


def _criteria(group: GroupDifference) -> list[str]:
    written = (side.criterion if side else None for side in (group.first, group.second))
    return [cropped(written_criterion(spec), LONGEST) if spec else NONE for spec in written]
