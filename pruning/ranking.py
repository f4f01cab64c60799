"""A ranking says which channels of every group to keep, at any width. Computed once, cut many times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.errors import RankingError, suggest

FORMAT = "1"


@runtime_checkable
class Ranking(Protocol):
    """Which channels to keep at any width."""

    criterion: str

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` channels of `group` to keep, ascending.

        Raises:
            RankingError: a group that was not ranked, or a width it does not have.
        """
        ...


class NestedRanking:
    """A ranking whose kept sets are nested: each group has one order, most important channel first.

    Args:
        criterion: name of the criterion that made it.
        orders: for each group its channels, most important first, int64 `[channels]`.
        scores: where the criterion has them, float64 `[channels]`, higher = keep; else empty.
    """

    def __init__(
        self, criterion: str, orders: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        self.criterion = criterion
        self.orders = dict(orders)
        self.scores = dict(scores or {})
        for group, order in self.orders.items():
            if not torch.equal(order.sort().values, torch.arange(len(order))):
                raise RankingError(f"{criterion}, group '{group}': expected every channel once, got {order.tolist()}")

    @classmethod
    def from_scores(cls, criterion: str, scores: Mapping[str, Tensor]) -> NestedRanking:
        """Order each group by its scores, ties to the lower index.

        Raises:
            RankingError: a score that is not finite.
        """
        finite = {group: _finite(score, group, criterion) for group, score in scores.items()}
        orders = {group: torch.sort(score, descending=True, stable=True).indices for group, score in finite.items()}
        return cls(criterion, orders, finite)

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` most important channels of `group`, ascending."""
        if group not in self.orders:
            raise RankingError(f"ranking '{self.criterion}': no group '{group}'{suggest(group, self.orders)}")
        order = self.orders[group]
        if not 1 <= width <= len(order):
            raise RankingError(f"ranking '{self.criterion}', group '{group}': expected 1 to {len(order)}, got {width}")
        return tuple(sorted(order[:width].tolist()))

    def save(self, path: Path) -> None:
        """Write orders and scores as safetensors."""
        tensors = {
            f"order/{group}": order.clone(memory_format=torch.contiguous_format) for group, order in self.orders.items()
        }
        tensors |= {
            f"score/{group}": score.clone(memory_format=torch.contiguous_format) for group, score in self.scores.items()
        }
        save_file(tensors, path, metadata={"format": FORMAT, "ranking": json.dumps({"criterion": self.criterion})})

    @classmethod
    def load(cls, path: Path) -> NestedRanking:
        """Read what `save` wrote.

        Raises:
            RankingError: missing, damaged or another format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except (OSError, SafetensorError) as error:
            raise RankingError(f"ranking {path}: {error}") from None
        if metadata.get("format") != FORMAT:
            raise RankingError(f"ranking {path}: expected format {FORMAT}, got {metadata.get('format')}")
        part = {
            kind: {name[6:]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}
            for kind in ("order", "score")
        }
        return cls(json.loads(metadata["ranking"])["criterion"], part["order"], part["score"])


def _finite(score: Tensor, group: str, criterion: str) -> Tensor:
    score = score.detach().double().cpu()
    bad = (~score.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RankingError(f"criterion '{criterion}', group '{group}': channels {bad} have no finite score")
    return score + 0.0  # −0.0 and 0.0 tie
