"""The best set of a given size under a quadratic loss: min ½·zᵀSz − uᵀz over z ∈ {0, 1}ᶜ with Σz = count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

ITERATIONS = 600
POWER_STEPS = 8
RELATIVE_GAP = 1e-4
"""The relaxation has converged when it is certain to this share of the numbers that it sums."""
PROMISING = 128
"""Of so many chosen and as many other channels the best pair is sought before all are asked."""
ROUNDING = 1e-12
"""A smaller share of the same numbers is rounding, no improvement."""


@dataclass(frozen=True)
class Choice:
    """A set of the asked size, and how far from the best set it can be.

    Attributes:
        chosen: bool `[channels]`, `count` of them true.
        value: ½·zᵀSz − uᵀz of this set.
        bound: no set of this size has a smaller value.
    """

    chosen: Mask
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How much better than this set another one can be at most, in the unit of the value."""
        return max(self.value - self.bound, 0.0)


def choose(S: NDArray[Any], u: NDArray[Any], count: int) -> Choice:
    """Choose `count` of the channels with a small ½·zᵀSz − uᵀz.

    The convex relaxation over 0 ≤ z ≤ 1 is rounded to the largest z, and the set that is best for diagonal S is taken
    as well; from both, pairs are swapped as long as that helps. The better one is returned: it is never worse than the
    set of the channels that are best one by one, and often the best of all sets.

    Args:
        S: symmetric and positive semidefinite, `[channels, channels]`.
        u: `[channels]`.
        count: how many to choose, 0 to channels.

    Returns:
        The set with its value and a bound that holds for every set, whether or not the relaxation has converged.
    """
    S, u = np.ascontiguousarray(S, dtype=np.float64), np.asarray(u, dtype=np.float64)
    if count in (0, len(u)):
        chosen = np.full(len(u), count > 0)
        value = evaluate(S, u, chosen)
        return Choice(chosen, value, value)
    relaxed, bound = relax(S, u, count)
    starts = smallest(-relaxed, count), smallest(np.diagonal(S) / 2 - u, count)
    results = [swap_pairs(S, u, start) for start in starts]
    values = [evaluate(S, u, result) for result in results]
    best = int(np.argmin(values))
    return Choice(results[best], values[best], min(bound, values[best]))


def evaluate(S: Vector, u: Vector, z: Vector | Mask) -> float:
    """Return ½·zᵀSz − uᵀz."""
    z = z.astype(np.float64)
    return float(z @ (S @ z) / 2 - u @ z)


def smallest(values: Vector, count: int) -> Mask:
    """Return where the `count` smallest values are, bool `[channels]`; of equal ones the last."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[len(values) - count :]] = True
    return chosen


def relax(S: Vector, u: Vector, count: int) -> tuple[Vector, float]:
    """Minimise ½·zᵀSz − uᵀz over 0 ≤ z ≤ 1, Σz = count; return the point and a bound from below, see `descend`."""
    return descend(
        S,
        u,
        np.full(len(u), count / len(u)),
        nearest=lambda y: project(y, count),
        least=lambda slope: float(np.partition(slope, count - 1)[:count].sum()),
    )


def descend(
    S: Vector, u: Vector, start: Vector, nearest: Callable[[Vector], Vector], least: Callable[[Vector], float]
) -> tuple[Vector, float]:
    """Minimise ½·zᵀSz − uᵀz over a convex set by accelerated projected gradients (FISTA with restarts).

    Args:
        S: symmetric and positive semidefinite, `[channels, channels]`.
        u: `[channels]`.
        start: a point of the set.
        nearest: of the set's points the nearest to a given one.
        least: the smallest g·z over the set for a given g, or a number below.

    Returns:
        The point, and a bound from below: with the slope g in any z, no point of the set, whole or not, has a value
        below −½·zᵀSz + the least of g over the set, for the function lies above its tangents.
    """
    curvature, bound = _curvature(S, u), -np.inf
    z = start
    Sz = S @ z
    ahead, S_ahead, momentum = z, Sz, 1.0  # the extrapolated point
    for _ in range(ITERATIONS):
        half, slope = z @ Sz / 2, Sz - u
        bound = max(bound, float(least(slope) - half))
        if half - u @ z - bound <= RELATIVE_GAP * (half + np.abs(u) @ z):
            break
        following = nearest(ahead - (S_ahead - u) / curvature)
        S_following = S @ following
        step = following - ahead
        if (bend := step @ (S_following - S_ahead)) > curvature * (step @ step) > 0:
            curvature = float(bend / (step @ step))
        if step @ (following - z) < 0:  # past the minimum along the way: start anew
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        rate = (momentum - 1) / grown
        ahead = following + rate * (following - z)
        S_ahead = S_following + rate * (S_following - Sz)
        z, Sz, momentum = following, S_following, grown
    return z, bound


def _curvature(S: Vector, u: Vector) -> float:
    """Return about the largest eigenvalue, from a few power steps; `descend` raises it where that is too little."""
    vector = np.sqrt(np.maximum(np.diagonal(S), 0))
    value = 0.0
    for _ in range(POWER_STEPS):
        if not (norm := np.linalg.norm(vector)):
            break
        vector = S @ (vector / norm)
        value = float(np.linalg.norm(vector))
    return max(value, 1e-6 * float(np.abs(u).max()), float(np.finfo(np.float64).tiny))


def project(y: Vector, total: float) -> Vector:
    """Return the nearest point with 0 ≤ z ≤ 1, Σz = total: clip(y − τ), with τ by Newton's steps within bisection."""
    return np.minimum(np.maximum(y - shift_for(y, total), 0), 1)


def shift_for(y: Vector, total: float) -> float:
    """Return a τ with Σ clip(y − τ) = total."""
    low, high = float(y.min()) - 1, float(y.max())
    shift = (low + high) / 2
    for _ in range(100):
        z = np.minimum(np.maximum(y - shift, 0), 1)
        excess = float(z.sum()) - total
        if abs(excess) <= ROUNDING * len(y):
            break
        low, high = (shift, high) if excess > 0 else (low, shift)
        free = np.count_nonzero((z > 0) & (z < 1))
        shift = shift + excess / free if free else low
        if not low < shift < high:
            shift = (low + high) / 2
    return shift


def swap_pairs(S: Vector, u: Vector, chosen: Mask) -> Mask:
    """Exchange the pair, one chosen and one not, that helps most, until no pair helps.

    With the slope g = Sz − u, taking q for p changes the value by g_q − g_p + ½·S_pp + ½·S_qq − S_pq. As S has no
    negative eigenvalue that is at least g_q − g_p: only pairs with g_q < g_p are looked at. Of many channels those with
    the largest g_p and the smallest g_q come first; only if none of them helps, all are asked.
    """
    chosen, diagonal = chosen.copy(), np.diagonal(S) / 2
    slope = S @ chosen - u
    least = ROUNDING * float(np.abs(slope).max() + diagonal.max())
    some = PROMISING
    while True:
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        lowest, highest = slope[outside].min(), slope[inside].max()
        inside, outside = inside[slope[inside] > lowest], outside[slope[outside] < highest]
        if not len(inside):
            return chosen
        all_asked = max(len(inside), len(outside)) <= some
        inside, outside = inside[_first(-slope[inside], some)], outside[_first(slope[outside], some)]
        change = (slope + diagonal)[outside] - (slope - diagonal)[inside, None] - S[np.ix_(inside, outside)]
        row, column = np.unravel_index(change.argmin(), change.shape)
        if change[row, column] < -least:
            p, q = inside[row], outside[column]
            chosen[p], chosen[q] = False, True
            slope += S[q] - S[p]
            some = PROMISING
        elif all_asked:
            return chosen
        else:
            some = len(u)


def _first(values: Vector, count: int) -> NDArray[np.intp]:
    """Return where the `count` smallest values are, in the order of the channels."""
    return np.sort(np.argpartition(values, count - 1)[:count]) if count < len(values) else np.arange(len(values))
