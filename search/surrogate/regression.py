"""A Gaussian process on top of straight lines, small enough to be fitted again after every trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

CERTAIN = 0.25
"""How far the logarithms of scales are from what is expected of them, as a deviation."""
CLOSE = 1e-5
"""The scales are good enough when a step improves the posterior's logarithm by this share of it."""
BATCH = 500
"""Policies that are predicted at a time: what lies between stays in the processor's cache."""


@dataclass(frozen=True)
class Rows:
    """What is known of some policies.

    Attributes:
        lines: what the value is expected to be linear in, `[policies, lines]`.
        place: where a policy is in the space of widths, `[policies, dimensions]`.
        label: which criterion it has, counted from 0, int64 `[policies]`.
    """

    lines: Matrix
    place: Matrix
    label: Labels

    def batches(self) -> Iterator[Rows]:
        """Yield all rows, some at a time."""
        for start in range(0, len(self.label), BATCH):
            part = slice(start, start + BATCH)
            yield Rows(self.lines[part], self.place[part], self.label[part])


@dataclass(frozen=True)
class Lines:
    """What is expected of offset and slopes before anything is seen, and with what deviations.

    Attributes:
        slopes: `[lines]`.
        slope_deviations: `[lines]`.
    """

    offset: float
    offset_deviation: float
    slopes: Vector
    slope_deviations: Vector

    def expected(self, rows: Rows) -> Vector:
        """Return the values that are expected, `[policies]`."""
        values: Vector = self.offset + rows.lines @ self.slopes
        return values

    def scaled(self, rows: Rows) -> Matrix:
        """Return offset and lines in units of their deviations, `[policies, 1 + lines]`: covariances are products."""
        offset = np.full((len(rows.label), 1), self.offset_deviation)
        return np.hstack([offset, rows.lines * self.slope_deviations])


@dataclass(frozen=True)
class Scales:
    """Deviations of the parts that a value is a sum of, besides the lines.

    Attributes:
        tilt: of a linear function of the place.
        bend: of a smooth function of the place; half of its variance is shared by all labels.
        length: at which distance, as a root mean square over the dimensions, two places have little in common.
        label: of what a label adds.
        noise: of what cannot be known from the rows.
    """

    tilt: float
    bend: float
    length: float
    label: float
    noise: float


class GaussianProcess:
    """Value = offset + slopes·lines + tilt + bend + label + noise, each normal.

    The scales maximise the posterior: the marginal likelihood times log-normal priors, so that few observations do
    little harm. A fit takes O(observations³).

    Paper: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006 (algorithm 2.1, equation 5.9).

    Args:
        rows: observed policies.
        values: `[policies]`.
        lines: what is expected of offset and slopes.
        typical: what is expected of the scales.
        labels: how many there are.
    """

    def __init__(self, rows: Rows, values: Vector, lines: Lines, typical: Scales, labels: int) -> None:
        self._rows, self._lines = rows, lines
        rest = values - lines.expected(rows)
        parts = _Parts.between(lines, rows, rows)
        expected = np.log(astuple(typical))
        found = minimize(
            lambda theta: _posterior(parts, rest, theta, expected),
            expected,
            jac=True,
            method="L-BFGS-B",
            options={"ftol": CLOSE},
        )
        theta = found.x
        self.scales, self._theta = Scales(*np.exp(theta).tolist()), theta
        self._factor = cho_factor(_with_noise(parts.covariance(theta)[0], theta), lower=True)
        self._weights: Vector = cho_solve(self._factor, rest)
        self._sum(labels)

    def mean(self, rows: Rows) -> Vector:
        """Return the expected values, `[policies]`."""
        return np.concatenate([np.zeros(0), *(self._mean(batch) for batch in rows.batches())])

    def deviation(self, rows: Rows) -> Vector:
        """Return how far values may be from the mean, noise not counted, `[policies]`."""
        return np.concatenate([np.zeros(0), *(self._deviation(batch) for batch in rows.batches())])

    @property
    def slopes(self) -> Vector:
        """The slopes of the lines as observed, `[lines]`."""
        slopes: Vector = self._lines.slopes + self._lines.slope_deviations * self._straight[1:]
        return slopes

    def _sum(self, labels: int) -> None:
        """Sum once over the observations what does not need all pairs of an observation and a new policy."""
        s, rows, w = self.scales, self._rows, self._weights
        self._straight = self._lines.scaled(rows).T @ w
        self._tilt = s.tilt**2 / rows.place.shape[1] * (rows.place.T @ w)
        of_label = w[:, None] * (rows.label[:, None] == np.arange(labels))
        self._label = s.label**2 * of_label.sum(axis=0)
        self._pulls = s.bend**2 / 2 * np.column_stack([w, of_label])
        halves = (rows.place**2).sum(axis=1) / 2
        self._corners = np.vstack([rows.place.T, -np.ones(len(w)), -halves]) / (rows.place.shape[1] * s.length**2)

    def _mean(self, rows: Rows) -> Vector:
        straight = self._lines.expected(rows) + self._lines.scaled(rows) @ self._straight
        halves = (rows.place**2).sum(axis=1) / 2
        # −½·|a − b|² = a·b − ½·|a|² − ½·|b|², as one product.
        near = np.column_stack([rows.place, halves, np.ones(len(halves))]) @ self._corners
        bends = np.exp(near, out=near) @ self._pulls
        bent = bends[:, 0] + bends[np.arange(len(bends)), 1 + rows.label]
        mean: Vector = straight + rows.place @ self._tilt + bent + self._label[rows.label]
        return mean

    def _deviation(self, rows: Rows) -> Vector:
        K = _Parts.between(self._lines, rows, self._rows).covariance(self._theta)[0]
        explained = (solve_triangular(self._factor[0], K.T, lower=True) ** 2).sum(axis=0)
        s = self.scales
        straight = (self._lines.scaled(rows) ** 2).sum(axis=1)
        alone = straight + s.tilt**2 * (rows.place**2).mean(axis=1) + s.bend**2 + s.label**2
        deviation: Vector = np.sqrt(np.maximum(alone - explained, 0))
        return deviation


@dataclass(frozen=True)
class _Parts:
    """What covariances are made of, each `[policies, others]`."""

    straight: Matrix
    product: Matrix
    distance: Matrix
    same: Matrix

    @classmethod
    def between(cls, lines: Lines, rows: Rows, others: Rows) -> _Parts:
        dimensions = rows.place.shape[1]
        product = rows.place @ others.place.T / dimensions
        squares = [(part.place**2).sum(axis=1) / dimensions for part in (rows, others)]
        return cls(
            straight=lines.scaled(rows) @ lines.scaled(others).T,
            product=product,
            distance=np.maximum(np.add.outer(*squares) - 2 * product, 0),
            same=np.equal.outer(rows.label, others.label).astype(np.float64),
        )

    def covariance(self, theta: Vector) -> tuple[Matrix, list[Matrix]]:
        """Return the covariance without noise, and its derivatives by the logarithms of tilt, bend, length, label."""
        tilt, bend, length, label = np.exp(2 * theta[:4])
        tilted, labelled = tilt * self.product, label * self.same
        bent = bend / 2 * np.exp(-self.distance / (2 * length)) * (1 + self.same)
        slopes = [2 * tilted, 2 * bent, bent * self.distance / length, 2 * labelled]
        return self.straight + tilted + bent + labelled, slopes


def _with_noise(K: Matrix, theta: Vector) -> Matrix:
    noisy: Matrix = K + np.exp(2 * theta[4]) * np.eye(len(K))
    return noisy


def _posterior(parts: _Parts, rest: Vector, theta: Vector, expected: Vector) -> tuple[float, Vector]:
    """Return minus the logarithm of the scales' posterior, and its gradient."""
    K, slopes = parts.covariance(theta)
    factor = cho_factor(_with_noise(K, theta), lower=True)
    inverse = cho_solve(factor, np.eye(len(K)))
    weights = inverse @ rest
    value = rest @ weights / 2 + np.log(np.diagonal(factor[0])).sum()
    against = inverse - np.multiply.outer(weights, weights)  # twice the derivative by K
    gradient = [np.vdot(against, slope) / 2 for slope in slopes]
    gradient.append(np.exp(2 * theta[4]) * np.trace(against))
    off = (theta - expected) / CERTAIN
    return float(value + off @ off / 2), np.array(gradient) + off / CERTAIN
