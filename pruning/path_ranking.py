"""A ranking by the path of a lasso: which channels have a coefficient depends on the penalty, from none to most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.errors import RankingError
from pruning.ranking import check_width, load_ranking, register_kind, write_ranking


class PathRanking:
    """A ranking whose kept sets are the supports along a falling penalty; they need not be nested.

    Args:
        criterion: name of the criterion that made it.
        penalties: for each group the penalties at which its support changes, falling, float64 `[knots]`.
        supports: for each group the channels with a coefficient between each knot and the next, bool
            `[knots − 1, channels]`; one comes in at a time.
        orders: for each group all channels, in the order in which they follow where the path has too few, int64
            `[channels]`.

    Raises:
        RankingError: parts that do not fit each other.
    """

    def __init__(
        self,
        criterion: str,
        penalties: Mapping[str, Tensor],
        supports: Mapping[str, Tensor],
        orders: Mapping[str, Tensor],
    ) -> None:
        self.criterion = criterion
        self.penalties = {group: penalties[group].double().cpu() for group in orders}
        self.supports = {group: supports[group].bool().cpu() for group in orders}
        self.orders = {group: order.cpu() for group, order in orders.items()}
        self.sizes = {group: of_group.sum(dim=1) for group, of_group in self.supports.items()}
        for group, order in self.orders.items():
            self._check(group, order)

    def _check(self, group: str, order: Tensor) -> None:
        knots, supports, place = self.penalties[group], self.supports[group], f"{self.criterion}, group '{group}'"
        if order.dim() != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise RankingError(f"{place}: expected every channel once, got {order.tolist()}")
        if supports.shape != (max(0, len(knots) - 1), len(order)):
            expected = f"supports between {len(knots)} knots, of {len(order)} channels"
            raise RankingError(f"{place}: expected {expected}, got {list(supports.shape)}")
        if not (knots.diff() <= 0).all():
            raise RankingError(f"{place}: expected falling penalties, got {knots.tolist()}")
        sizes = self.sizes[group]
        if (sizes.diff(prepend=sizes.new_zeros(1)) > 1).any():
            raise RankingError(f"{place}: expected one more channel at a time, got supports of {sizes.tolist()}")

    @property
    def scores(self) -> dict[str, Tensor]:
        """For each channel the largest penalty at which it has a coefficient, 0 where it never has, float64."""
        scores = {}
        for group, supports in self.supports.items():
            starts = self.penalties[group][:-1, None] * supports
            scores[group] = starts.max(dim=0).values if len(starts) else starts.new_zeros(supports.shape[1])
        return scores

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the support at the largest penalty at which it has `width` channels, ascending.

        Where no penalty leaves so many, those of the first of the largest supports are filled up in the group's order.
        """
        check_width(self.criterion, self.orders, group, width)
        order, sizes = self.orders[group], self.sizes[group]
        most = int(sizes.max()) if len(sizes) else 0
        inside = torch.zeros(len(order), dtype=torch.bool)
        if most:
            inside = self.supports[group][int((sizes >= min(width, most)).int().argmax())]
        first = [channel for channel in order.tolist() if not inside[channel]][: max(0, width - most)]
        return tuple(sorted([*inside.nonzero()[:, 0].tolist(), *first]))

    def save(self, path: Path) -> None:
        """Write penalties, supports and orders as safetensors."""
        parts = {"penalty": self.penalties, "support": self.supports, "order": self.orders}
        write_ranking(path, "path", self.criterion, parts)

    @classmethod
    def load(cls, path: Path) -> PathRanking:
        """Read what `save` wrote.

        Raises:
            RankingError: missing, damaged or another format.
        """
        ranking = load_ranking(path)
        if not isinstance(ranking, cls):
            raise RankingError(f"ranking {path}: expected lasso paths, got a {type(ranking).__name__}")
        return ranking


@register_kind("path")
def _load(criterion: str, parts: Mapping[str, dict[str, Tensor]], _: Mapping[str, Any]) -> PathRanking:
    return PathRanking(criterion, parts["penalty"], parts["support"], parts["order"])
