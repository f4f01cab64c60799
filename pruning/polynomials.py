"""Sums of products of axis sizes, such as the MACs of a network, as functions of its widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

AT_ONCE = 4096
"""So many width vectors are evaluated together, to bound the memory."""


@dataclass(frozen=True, slots=True)
class Product:
    """Something of one weight: `factor · Π over its cut axes (size − Σ lost[group] · channels removed of the group)`.

    Attributes:
        factor: the entries of the axes that no cut touches; for MACs times the places of the image at which the weight
            is applied.
        axes: for each cut axis its size, and how much of it one channel of each group is.
    """

    factor: int
    axes: tuple[tuple[int, Mapping[str, int]], ...]


class Polynomials:
    """Sums `Σ shares[product, value] · product` at many width vectors at once.

    Whole numbers are exact below 2^53, in float64, which no cost of one image comes near.

    Args:
        full: widths by group name, before any cut.
        products: what is summed.
        shares: how often each product counts in each value, `[products, values]`.
    """

    def __init__(self, full: Mapping[str, int], products: Sequence[Product], shares: Vector) -> None:
        depth = max([1, *(len(product.axes) for product in products)])
        axes = np.array([_axes(product, full, depth) for product in products]).reshape(-1, depth, 1 + len(full))
        shares = shares * np.array([product.factor for product in products], dtype=np.float64)[:, None]
        linear = np.array([len(product.axes) < 2 for product in products], dtype=np.bool_)
        self._linear = axes[linear, 0].T @ shares[linear]  # [1 + groups, values]
        self._axes = np.ascontiguousarray(axes[~linear].transpose(1, 2, 0))  # [axes, 1 + groups, products]
        self._shares = shares[~linear]

    def __call__(self, widths: Integers) -> Vector:
        """Return the values, float64 `[policies, values]`, at widths `[policies, groups]`, columns as `full`."""
        if len(widths) > AT_ONCE:
            return np.concatenate([self(widths[start : start + AT_ONCE]) for start in range(0, len(widths), AT_ONCE)])
        row = np.ones((len(widths), self._linear.shape[0]))
        row[:, 1:] = widths
        values: Vector = row @ self._linear + (row @ self._axes).prod(axis=0) @ self._shares
        return values


def _axes(product: Product, full: Mapping[str, int], depth: int) -> Vector:
    """Return the size of each axis as `row · (1, widths)`, `[depth, 1 + groups]`; an axis that is not there is 1."""
    column = {name: index for index, name in enumerate(full, start=1)}
    rows = np.zeros((depth, 1 + len(full)))
    rows[:, 0] = 1
    for row, (size, lost) in zip(rows, product.axes, strict=False):
        row[0] = size - sum(share * full[name] for name, share in lost.items())
        for name, share in lost.items():
            row[column[name]] = share
    return rows
