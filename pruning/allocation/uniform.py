"""Uniform: the same share everywhere, the rule that every other has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar

from pruning.allocation import register
from pruning.allocation.budget import at_least, project
from pruning.cost import CostModel
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking


@register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every group keeps the same share of its channels; the share follows from the budget, or from `rate`.

    Args:
        round_to: widths are multiples of so many filters, or the group's full width.
        rate: which share of every group is removed, whatever the budget: it keeps c − ⌊rate·c⌋ channels, and up to
            `round_to` − 1 more. None: the budget decides.
    """

    looks_at_ranking: ClassVar[bool] = False
    ranked_by: ClassVar[CriterionSpec | None] = None

    round_to: int = 1
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 <= self.rate < 1:
            raise OptionError(f"rate: expected 0 to less than 1, got {self.rate}")

    @property
    def budgeted(self) -> bool:
        """See `Allocation.budgeted`."""
        return self.rate is None

    def widths(
        self,
        groups: ChannelGroups,
        cost: CostModel,
        macs: int | None,
        ranking: Ranking | None = None,  # noqa: ARG002, a uniform rule looks at no score
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`."""
        if self.rate is not None:
            rate = Fraction(str(self.rate))  # 0.7 is no binary fraction: 90·0.7 would leave one channel more
            kept = {name: width - floor(rate * width) for name, width in groups.widths.items()}
            return at_least(groups, kept, self.round_to)

        def direction(share: float) -> dict[str, float]:
            return {name: share * width for name, width in groups.widths.items()}

        return project(groups, cost, direction, macs, round_to=self.round_to)
