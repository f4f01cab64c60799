"""What is known of a cut before any trial: how much harm each group's width does by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning import QuadraticRanking, SensitivityRanking
from search.errors import SearchError

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]

SHARES = tuple(share / 10 for share in range(1, 10))
"""Of the channels kept, where a quadratic loss is asked; between them it is interpolated."""

LEAST_LOSS = 1e-3
"""Smaller losses count as this one."""
MARGIN = 0.005
"""Accuracies count as this far from 0 and 1 at least: log-odds have no end."""


@dataclass(frozen=True)
class Prior:
    """The harm of each group's cut alone; that of a policy is taken to be the sum. The unit does not matter.

    Attributes:
        harm: of each group, at each number of channels kept, float64 `[full width + 1]`; it never grows with the
            width, and is 0 at the full one.
    """

    harm: Mapping[str, Vector]

    @classmethod
    def of_curves(cls, ranking: SensitivityRanking) -> Prior:
        """Read measured curves: harm is what the logarithm of the loss gains."""
        logs = {name: curve.loss.clamp(min=LEAST_LOSS).log().tolist() for name, curve in ranking.curves.items()}
        return cls({name: _harm(ranking.curves[name].widths.tolist(), log) for name, log in logs.items()})

    @classmethod
    def of_accuracies(cls, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Prior:
        """Read widths, ascending to the full one, with accuracies: harm is what the log-odds of a right answer lose."""
        read = {name: tuple(zip(*curve, strict=True)) for name, curve in curves.items()}
        return cls({name: _harm(widths, -log_odds(accuracies)) for name, (widths, accuracies) in read.items()})

    @classmethod
    def of_quadratic(cls, ranking: QuadraticRanking, shares: Iterable[float] = SHARES) -> Prior:
        """Ask a quadratic loss: harm is what it says of removing the best set of each size, ½·zᵀSz − uᵀz."""
        return cls({name: _quadratic(ranking, name, shares) for name in ranking.linear})

    def check(self, names: Sequence[str], full: Integers) -> None:
        """Refuse groups of which nothing, or something else, is known.

        Args:
            names: of the groups.
            full: their full widths, `[groups]`.

        Raises:
            SearchError: a group that is missing, or is not as wide.
        """
        for name, width in zip(names, full.tolist(), strict=True):
            if name not in self.harm:
                raise SearchError(f"prior: expected what a cut of '{name}' does, got that of {', '.join(self.harm)}")
            if len(self.harm[name]) != width + 1:
                raise SearchError(f"prior, group '{name}': expected {width} channels, got {len(self.harm[name]) - 1}")

    def of(self, names: Sequence[str], widths: Integers) -> Vector:
        """Return the harm of each policy, `[policies]`, at widths `[policies, groups]`."""
        total: Vector = np.zeros(len(widths))
        for column, name in enumerate(names):
            total += self.harm[name][widths[:, column]]
        return total


def log_odds(accuracy: Sequence[float] | Vector) -> Vector:
    """Return ln(p / (1 − p)); see `MARGIN`."""
    p = np.clip(np.asarray(accuracy, dtype=np.float64), MARGIN, 1 - MARGIN)
    odds: Vector = np.log(p / (1 - p))
    return odds


def _harm(widths: Sequence[int], worse: Sequence[float] | Vector) -> Vector:
    """Return the harm at every width from 0 on, from that at some; below the first as steep as behind it."""
    measured = np.maximum.accumulate(np.asarray(worse)[::-1] - worse[-1])[::-1]  # the full width is the last
    steep = 0.0
    if len(widths) > 1:
        steep = (measured[0] - measured[1]) / (widths[1] - widths[0])
    nothing = measured[0] + steep * widths[0]
    harm: Vector = np.interp(np.arange(widths[-1] + 1), [0, *widths], [nothing, *measured])
    return harm


def _quadratic(ranking: QuadraticRanking, name: str, shares: Iterable[float]) -> Vector:
    u, S = ranking.linear[name].numpy(), ranking.quadratic[name].numpy()
    widths = sorted({max(1, round(share * len(u))) for share in shares} | {len(u)})
    losses = []
    for width in widths:
        z = np.ones(len(u))
        z[list(ranking.keep(name, width))] = 0
        losses.append(float(z @ S @ z / 2 - u @ z))
    return _harm(widths, losses)
