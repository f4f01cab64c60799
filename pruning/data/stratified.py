"""Draw images so that every class keeps its share."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import DataError


def draw_stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` images without replacement, as many of each class as its share of all images says.

    Shares that are no whole numbers are rounded down; the largest remainders, ties to the lower class, fill up.

    Args:
        labels: class of each image, int64 `[images]`, on the CPU.
        count: how many to draw, 1 to all.
        seed: equal seeds draw equal images.

    Returns:
        The drawn images in random order, and the others in the order of `labels`; int64 indices.

    Raises:
        DataError: no such number of images.
    """
    if not 1 <= count <= len(labels):
        raise DataError(f"images to draw: expected 1 to {len(labels)}, got {count}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = order[_rank_in_class(labels[order]) < _quotas(labels, count)[labels[order]]]
    left = torch.ones(len(labels), dtype=torch.bool)
    left[drawn] = False
    return drawn, left.nonzero().flatten()


def _quotas(labels: Tensor, count: int) -> Tensor:
    per_class = labels.bincount()
    quotas, remainders = per_class * count // len(labels), per_class * count % len(labels)
    largest = remainders.sort(descending=True, stable=True).indices
    quotas[largest[: count - int(quotas.sum())]] += 1
    return quotas


def _rank_in_class(labels: Tensor) -> Tensor:
    """Return how many earlier images have the class of this one."""
    by_class = labels.sort(stable=True).indices
    per_class = labels.bincount()
    starts = per_class.cumsum(0) - per_class
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return ranks
