"""The whole path of a lasso, min ½·bᵀQb − qᵀb + α·‖b‖₁, from Q and q: every penalty α at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

LARGEST = 1e4
"""What the largest |q| is scaled to: the solver stops at a penalty of 1.2e-7, whatever the numbers' size."""
STEPS = 100
"""The path has at most so many knots for each channel; it needs little more than one."""
LEFT = 1e-10
"""A coefficient that leaves the path stays behind as rounding: a smaller share of the knot's largest one."""
TWIN = 1e-12
"""Two channels are the same if ‖K − K'‖² is a smaller share of ‖K‖² + ‖K'‖²."""


@dataclass(frozen=True)
class LassoPath:
    """The minimiser as a function of the penalty: linear between knots.

    Attributes:
        penalties: α of the knots, falling, `[knots]`; above the first all coefficients are zero, the last is 0 unless
            rounding ends the path before.
        coefficients: b at the knots, `[knots, channels]`.
    """

    penalties: Vector
    coefficients: Vector

    @cached_property
    def supports(self) -> Mask:
        """Which coefficients are not zero between each knot and the next, `[knots − 1, channels]`."""
        upper, lower = np.abs(self.coefficients[:-1]), self.coefficients[1:]
        found: Mask = (lower != 0) | (upper > LEFT * upper.max(axis=1, keepdims=True, initial=0.0))
        return found

    def at(self, penalty: float) -> Vector:
        """Return the coefficients at a penalty, `[channels]`."""
        falling = self.penalties[::-1]
        return np.array([np.interp(penalty, falling, of_channel[::-1]) for of_channel in self.coefficients.T])

    def support(self, penalty: float) -> Mask:
        """Return which coefficients are not zero at a penalty, `[channels]`; at a knot, those just above it."""
        segment = int(np.searchsorted(-self.penalties, -penalty, side="left")) - 1
        if segment < 0 or not len(self.supports):
            return np.zeros(self.coefficients.shape[1], dtype=bool)
        found: Mask = self.supports[min(segment, len(self.supports) - 1)]
        return found


def solve_path(Q: Vector, q: Vector, *, signed: bool = True) -> LassoPath:
    """Minimise ½·bᵀQb − qᵀb + α·‖b‖₁ for all α ≥ 0; scikit-learn's `Lasso` has the same α if Q and q are divided by n.

    A channel that is zero and one that is the same as an earlier one stay out of the path.

    Args:
        Q: symmetric and positive semidefinite, `[channels, channels]`.
        q: `[channels]`.
        signed: coefficients may be negative.
    """
    chosen = np.flatnonzero((np.diagonal(Q) > 0) & ~twins(Q))
    strongest = np.abs(q[chosen]).max(initial=0.0) if signed else q[chosen].max(initial=0.0)
    if strongest <= 0:
        return LassoPath(np.zeros(1), np.zeros((1, len(q))))
    widest = np.diagonal(Q)[chosen].max()
    penalties, coefficients = _lars(
        Q[np.ix_(chosen, chosen)] / widest, q[chosen] * (LARGEST / strongest), signed=signed
    )
    whole = np.zeros((len(penalties), len(q)))
    whole[:, chosen] = coefficients * (strongest / LARGEST / widest)
    return LassoPath(penalties * (strongest / LARGEST), whole)


def twins(Q: Vector) -> Mask:
    """Return which channels are the same as one before them, `[channels]`."""
    norms = np.diagonal(Q)
    sums = norms[:, None] + norms
    same = (sums - 2 * Q <= TWIN * sums) & (norms > 0)
    found: Mask = np.any(np.triu(same, k=1), axis=0)
    return found


def _lars(Q: Vector, q: Vector, *, signed: bool) -> tuple[Vector, Vector]:
    """Return the knots `[knots]` and the coefficients `[knots, channels]`, as far as penalties fall."""
    if not signed:  # the solver takes q − Qb of the best channel outside for the penalty, even below 0: give it a 0
        Q, q = np.pad(Q, (0, 1)), np.append(q, 0.0)
        Q[-1, -1] = 1.0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A channel that others say already is left out, and a path whose rest is rounding ends: both are right here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties, _, coefficients = lars_path_gram(
            Xy=q, Gram=Q, n_samples=1, method="lasso", positive=not signed, max_iter=STEPS * len(q)
        )
    good = np.isfinite(coefficients).all(axis=0) & np.isfinite(penalties)
    good[1:] &= np.diff(penalties) <= 0
    knots = len(good) if good.all() else int(np.argmin(good))
    return penalties[:knots], coefficients.T[:knots, : len(q) - (not signed)]
