"""Global: one threshold for the scores of the whole network; the widths are what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pruning.allocation import register
from pruning.allocation.budget import Direction, project
from pruning.cost import CostModel
from pruning.errors import OptionError, RankingError, suggest
from pruning.groups import ChannelGroups
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.abs().mean(),
    "max": lambda scores: scores.abs().max(),
    "l2": torch.linalg.vector_norm,
    "none": torch.ones_like,
}


@register("global")
@dataclass(frozen=True)
class Global:
    """Every group keeps its channels whose score, normalised within the group, reaches one threshold.

    The threshold follows from the budget.

    Args:
        normalise: what a group's scores are divided by: the `mean` or `max` of their absolute values, their `l2` norm
            (Molchanov et al., ICLR 2017), or `none` where scores of different groups compare as they are.
        minimum_share: every group keeps at least this share of its channels, so that none collapses.
        round_to: widths are multiples of so many filters, or the group's full width.
    """

    budgeted: ClassVar[bool] = True
    looks_at_ranking: ClassVar[bool] = True
    ranked_by: ClassVar[CriterionSpec | None] = None

    normalise: str = "mean"
    minimum_share: float = 0.1
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.normalise not in NORMS:
            raise OptionError(f"normalise: unknown norm '{self.normalise}'{suggest(self.normalise, NORMS)}")
        if not 0 <= self.minimum_share <= 1:
            raise OptionError(f"minimum_share: expected 0 to 1, got {self.minimum_share}")

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`."""
        return project(groups, cost, self._direction(groups, ranking), macs, round_to=self.round_to)

    def _direction(self, groups: ChannelGroups, ranking: Ranking | None) -> Direction:
        scores = [self._normalised(ranking, name) for name in groups]
        owners = np.repeat(np.arange(len(groups)), [len(score) for score in scores])
        best_first = owners[torch.sort(torch.cat(scores), descending=True, stable=True).indices.numpy()]
        share = Fraction(str(self.minimum_share))
        floors = [math.ceil(share * width) for width in groups.widths.values()]

        def direction(t: float) -> dict[str, float]:
            kept = np.bincount(best_first[: round(t * len(best_first))], minlength=len(groups))
            return {name: max(*pair) for name, *pair in zip(groups, kept.tolist(), floors, strict=True)}

        return direction

    def _normalised(self, ranking: Ranking | None, group: str) -> Tensor:
        scores: Tensor | None = getattr(ranking, "scores", {}).get(group)
        if scores is None:
            got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
            raise RankingError(f"allocation 'global', group '{group}': expected scores, got {got}")
        norm = NORMS[self.normalise](scores)
        return torch.where(norm > 0, scores / norm, scores)  # a group of zeros stays zero
