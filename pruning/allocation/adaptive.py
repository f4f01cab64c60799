"""Adaptive: a group is wide enough when one channel more hardly changes the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pruning.allocation import register
from pruning.allocation.budget import Direction, at_least, project
from pruning.cost import CostModel
from pruning.errors import OptionError, RankingError
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking

Vector = NDArray[np.float64]


@register("adaptive")
@dataclass(frozen=True)
class Adaptive:
    """Every group keeps the first t channels picked at which |L(t−1) − L(t)| / L(0) ≤ ε for the first time.

    L(t) is the loss with the first t picks of a greedy ranking; a group whose loss moves by more to the end keeps all.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, eq. 10.
    Differs: ε can follow from a budget, where the paper's is given.

    Args:
        epsilon: ε, above 0; the widths then are those of ε, whatever the budget. None: the ε that spends the budget.
        round_to: widths are multiples of so many filters, or the group's full width; those of a given ε are rounded up.
    """

    looks_at_ranking: ClassVar[bool] = True
    ranked_by: ClassVar[CriterionSpec | None] = None

    epsilon: float | None = None
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise OptionError(f"epsilon: expected a number above 0, got {self.epsilon}")

    @property
    def budgeted(self) -> bool:
        """See `Allocation.budgeted`."""
        return self.epsilon is None

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`.

        Raises:
            RankingError: a ranking that has no losses, or whose losses end before the width that is sought.
        """
        drops = _drops(ranking, groups)
        if self.epsilon is not None:
            picks = {name: _picks(of_group, self.epsilon) for name, of_group in drops.items()}
            widths = at_least(groups, picks, self.round_to)
        else:
            widths = picks = project(groups, cost, _direction(groups, drops), macs, round_to=self.round_to)
        for name, width in groups.widths.items():
            if picks[name] > len(drops[name]) and width > len(drops[name]) + 1:  # the last pick is known without a loss
                reached = "the budget is spent" if self.epsilon is None else f"a drop of {self.epsilon:g}"
                raise RankingError(
                    f"allocation 'adaptive', group '{name}': expected losses until {reached}, got those of "
                    f"{len(drops[name])} of {width} picks; rank with complete: true"
                )
        return widths


def _drops(ranking: Ranking | None, groups: ChannelGroups) -> dict[str, Vector]:
    """Return the smallest relative drop of the loss up to each pick, float64 `[picks]`."""
    if not isinstance(ranking, GreedyRanking):
        got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
        raise RankingError(f"allocation 'adaptive': expected the losses of a greedy search, as dcp gives, got {got}")
    drops = ranking.drops
    for name in groups:
        if name not in drops:
            raise RankingError(f"allocation 'adaptive', group '{name}': expected its losses, got those of {[*drops]}")
    return {name: np.minimum.accumulate(drops[name].numpy()) for name in groups}


def _picks(smallest: Vector, epsilon: float) -> int:
    """Return the first pick that drops the loss by at most ε; one more than there are where none does."""
    return int(np.count_nonzero(smallest > epsilon)) + 1


def _direction(groups: ChannelGroups, drops: dict[str, Vector]) -> Direction:
    """Return the widths as ε falls from ∞, through every drop of a group, to 0 and below: then all are full."""
    tolerances = [np.inf, *np.unique(np.concatenate([*drops.values()]))[::-1].tolist(), -np.inf]

    def direction(t: float) -> dict[str, float]:
        epsilon = tolerances[round(t * (len(tolerances) - 1))]
        return {name: min(_picks(drops[name], epsilon), width) for name, width in groups.widths.items()}

    return direction
