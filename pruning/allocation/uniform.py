"""Uniform: the same share everywhere, the rule that every other has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.allocation import register
from pruning.allocation.budget import project
from pruning.cost import CostModel
from pruning.groups import ChannelGroups
from pruning.ranking import Ranking


@register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every group keeps the same share of its channels; the share follows from the budget.

    Args:
        round_to: widths are multiples of this, or the group's full width.
    """

    round_to: int = 1

    def widths(
        self,
        groups: ChannelGroups,
        cost: CostModel,
        macs: int,
        ranking: Ranking | None = None,  # noqa: ARG002, a uniform rule looks at no score
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`."""

        def direction(share: float) -> dict[str, float]:
            return {name: share * width for name, width in groups.widths.items()}

        return project(groups, cost, direction, macs, round_to=self.round_to)
