"""The cost that proposals meet: its unit, what widths cost in it, and a rule's widths by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from pruning import (
    Allocation,
    ChannelGroups,
    CostModel,
    LatencyModel,
    Measure,
    PolicyError,
    Ranking,
    project,
)
from search.directions import Direction, Widths, scaled

ANCHORS = 17
"""At how many budgets a rule is asked; between them its widths are interpolated."""


@dataclass(frozen=True)
class Budget:
    """The cost of one image that is met: MACs, parameters, or microseconds by a model of the latency."""

    cost: CostModel
    of: Literal["macs", "params", "latency_ms"] = "macs"
    latency: LatencyModel | None = None

    @property
    def measure(self) -> Literal["macs", "params"] | Measure:
        """What `pruning.project` takes."""
        if self.of == "latency_ms":
            assert self.latency is not None
            return self.latency.microseconds
        return self.of

    @cached_property
    def full(self) -> int:
        """What the baseline costs."""
        return self.spent({})

    def spent(self, widths: Mapping[str, int]) -> int:
        """Return what widths cost; groups that are not named are whole."""
        if self.of == "latency_ms":
            assert self.latency is not None
            of_all = np.array([[widths.get(name, full) for name, full in self._widths]], dtype=np.int64)
            return int(self.latency.microseconds(of_all)[0])
        return int(getattr(self.cost.cost(widths), self.of))

    def target(self, share: float) -> int:
        """Return a part of the baseline's cost; a policy's own share gives its cost."""
        return round(share * self.full)

    @property
    def _widths(self) -> list[tuple[str, int]]:
        return list(zip(self.cost.groups, self.cost.widths.tolist(), strict=True))


@dataclass
class RuleWidths:
    """A rule's widths at any budget: exact where it is of MACs, interpolated between some MACs where it is not.

    Args:
        rule: one with a budget.
        groups: those that it sizes.
        budget: what is met.
        ranking: what the rule looks at.
        least: widths below which no proposal goes.
        round_to: of the widths.
    """

    rule: Allocation
    groups: ChannelGroups
    budget: Budget
    ranking: Ranking | None
    least: Mapping[str, int]
    round_to: int = 1
    _known: dict[int, dict[str, int] | None] = field(default_factory=dict, init=False, repr=False)

    def exact(self, target: int) -> dict[str, int]:
        """Return widths that meet a budget.

        Raises:
            PolicyError: a budget that the rule cannot meet.
        """
        if self.budget.of == "macs":
            return self.rule.widths(self.groups, self.budget.cost, target, self.ranking)
        return self.through(scaled(self.near(target), self.least, self.groups.widths), target)

    def near(self, target: int) -> Widths:
        """Return widths, no whole numbers, between those at the two nearest of some fixed budgets.

        Raises:
            PolicyError: a rule that meets none of them.
        """
        low, high = 0, ANCHORS - 1  # the last one is the full network: it is never None
        while high - low > 1:
            middle = (low + high) // 2
            widths = self._at(middle)
            if widths is None or self.budget.spent(widths) <= target:
                low = middle
            else:
                high = middle
        above, below = self._at(high), self._at(low)
        if above is None:
            raise PolicyError(f"budget: the rule meets none up to {self.budget.full}")
        if below is None:
            return above
        ends = self.budget.spent(below), self.budget.spent(above)
        part = min(1.0, max(0.0, (target - ends[0]) / max(1, ends[1] - ends[0])))
        return {name: below[name] + part * (above[name] - below[name]) for name in above}

    def through(self, direction: Direction, target: int) -> dict[str, int]:
        """Return the widths along a direction that meet a budget; see `pruning.project`."""
        measure = self.budget.measure
        return project(self.groups, self.budget.cost, direction, target, round_to=self.round_to, measure=measure)

    def _at(self, anchor: int) -> dict[str, int] | None:
        if anchor not in self._known:
            cost = self.budget.cost
            least = cost.cost(self.least).macs
            macs = least + round(anchor / (ANCHORS - 1) * (cost.full.macs - least))
            try:
                self._known[anchor] = self.rule.widths(self.groups, cost, macs, self.ranking)
            except PolicyError:
                self._known[anchor] = None
        return self._known[anchor]
