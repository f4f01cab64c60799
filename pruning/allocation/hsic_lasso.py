"""HSIC lasso: one penalty for the lassos of all groups; the widths are how many channels each keeps at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pruning.allocation import register
from pruning.allocation.budget import Direction, project
from pruning.cost import CostModel
from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.path_ranking import PathRanking
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking

Integers = NDArray[np.int64]
Vector = NDArray[np.float64]


@register("hsic_lasso")
@dataclass(frozen=True)
class HSICLasso:
    """Every group keeps as many channels as its lasso path has at the one penalty that spends the budget.

    The paths are those of the criterion `apib`, whichever criterion chooses the channels.

    Paper: Guo et al., Automatic Network Pruning via Hilbert-Schmidt Independence Criterion Lasso under Information
    Bottleneck Principle, ICCV 2023. The rule is the authors' code's; inferred: the paper's text was not to be had.
    Differs: a group counts its largest support down to the penalty, in the authors' code the one at the penalty, which
    is smaller where the path has just lost a channel; the authors accept any cost within 1 % of the target, here it is
    never above, and what is left over goes towards the next penalties. Where the budget is larger than the ends of all
    paths, the channels that no penalty keeps come back in equal shares.

    Args:
        minimum_width: ω, the least that a group keeps; the penalty is the one that spends the budget with it.
        round_to: widths are multiples of so many filters, or the group's full width.
        criterion: options of `apib`; normalised paths (`normalise: frobenius`) make another rule of it.
    """

    budgeted: ClassVar[bool] = True
    looks_at_ranking: ClassVar[bool] = True

    minimum_width: int = 1
    round_to: int = 1
    criterion: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.minimum_width < 1:
            raise OptionError(f"allocation 'hsic_lasso', minimum_width: expected at least 1, got {self.minimum_width}")
        if not isinstance(self.criterion, Mapping):
            raise OptionError(f"allocation 'hsic_lasso', criterion: expected options of apib, got {self.criterion!r}")
        CRITERIA.build("apib", **self.criterion)  # refuses what it does not take

    @property
    def ranked_by(self) -> CriterionSpec:
        """See `Allocation.ranked_by`."""
        return CriterionSpec(name="apib", options=dict(self.criterion))

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`.

        Raises:
            RankingError: a ranking that has no paths of these groups.
        """
        paths = _paths(ranking, groups)
        least = {name: min(self.minimum_width, width) for name, width in groups.widths.items()}
        return project(groups, cost, _direction(groups, paths, least), macs, round_to=self.round_to)


@dataclass(frozen=True)
class _Sizes:
    """How many channels a path has: the largest support so far, `[segments]`, below each penalty, falling."""

    penalties: Vector
    largest: Integers

    def below(self, penalty: float) -> int:
        """Return how many there are just below a penalty."""
        segments = int(np.searchsorted(-self.penalties, -penalty, side="right"))
        return int(self.largest[segments - 1]) if segments else 0


def _paths(ranking: Ranking | None, groups: ChannelGroups) -> dict[str, _Sizes]:
    if not isinstance(ranking, PathRanking):
        got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
        raise RankingError(f"allocation 'hsic_lasso': expected lasso paths, as criterion apib gives, got {got}")
    for name, width in groups.widths.items():
        if name not in ranking.orders or len(ranking.orders[name]) != width:
            known = ", ".join(f"{other} {len(order)}" for other, order in ranking.orders.items())
            raise RankingError(f"allocation 'hsic_lasso', group '{name}': expected {width} channels, got {known}")
    return {
        name: _Sizes(ranking.penalties[name][:-1].numpy(), np.maximum.accumulate(ranking.sizes[name].numpy()))
        for name in groups
    }


def _direction(groups: ChannelGroups, paths: dict[str, _Sizes], least: dict[str, int]) -> Direction:
    """Return the widths as the penalty falls through all knots (to t = ½), then on to the full ones in equal shares."""
    knots = [np.inf, *np.unique(np.concatenate([path.penalties for path in paths.values()]))[::-1].tolist()]

    def at(penalty: float) -> dict[str, int]:
        return {name: max(path.below(penalty), least[name]) for name, path in paths.items()}

    ends = at(knots[-1])

    def direction(t: float) -> Mapping[str, float]:
        if t <= 0.5:
            return at(knots[round(2 * t * (len(knots) - 1))])
        return {name: end + (2 * t - 1) * (groups[name].width - end) for name, end in ends.items()}

    return direction
