"""Rungs: the epochs at which trials are compared, and from which only the best part of them goes on. No Ray.

The order is NSGA-II's: by non-dominated rank, then by distance to the neighbours, so that the whole range of costs
stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Rungs:
    """What trials measured at the epochs where they are compared.

    Paper: Li et al., A System for Massively Parallel Hyperparameter Tuning (ASHA), MLSys 2020.
    Differs: the order is that of fronts, not of one metric. A trial is judged once, on its arrival, and never waits; so
    that early ones are not stopped for lack of others, what none dominates goes on.

    Args:
        factor: one in so many trials goes on, and each rung has so many times the epochs of the one before.
        first: the first rung's epoch; 0 is after the cut, and the next one is 1.
    """

    def __init__(self, factor: int, first: int = 0) -> None:
        self._factor, self._first = factor, first
        self._entries: dict[int, dict[int, tuple[tuple[float, ...], float]]] = {}  # epoch → number → point, excess

    def epochs(self, last: int) -> list[int]:
        """Return the rungs of a trial of `last` epochs: those that it can leave `factor` times behind."""
        epochs = [0] if self._first == 0 < last else []
        epoch = max(self._first, 1)
        while epoch * self._factor <= last:
            epochs.append(epoch)
            epoch *= self._factor
        return epochs

    def enter(self, number: int, epoch: int, point: Sequence[float], excess: float = 0.0) -> bool:
        """Add what a trial measured at a rung and return whether it was not there before; the first time counts.

        Args:
            number: of the trial; of equal trials the lower one comes first.
            epoch: of the rung.
            point: one finite value an objective, to be minimised.
            excess: how far the trial is beyond limits, ≥ 0; 0 is within.
        """
        entries = self._entries.setdefault(epoch, {})
        new = number not in entries
        entries.setdefault(number, (tuple(point), excess))
        return new

    def goes_on(self, number: int, epoch: int) -> bool:
        """Whether none dominates a trial among the n entered at a rung, or it is among the first ⌈n/factor⌉ of them."""
        entries = self._entries[epoch]
        numbers = np.array(sorted(entries))
        points = np.array([entries[number][0] for number in numbers], dtype=np.float64)
        rank = ranks(points, np.array([entries[number][1] for number in numbers], dtype=np.float64))
        own = rank[np.searchsorted(numbers, number)]
        equals = np.flatnonzero(rank == own)
        places = -(-len(numbers) // self._factor) - np.count_nonzero(rank < own)
        if own == 0 or len(equals) <= places:
            return True
        by_distance = np.argsort(-crowding_distance(points[equals]), kind="stable")
        return number in numbers[equals[by_distance[: max(0, places)]]]


def ranks(points: Floats, excess: Floats) -> Ints:
    """Return each trial's rank, 0 is best: that of its front within limits, behind them by the excess.

    Args:
        points: `[trials, objectives]`, finite, all to be minimised.
        excess: `[trials]`, ≥ 0; 0 is within.
    """
    within, rank = excess <= 0, np.zeros(len(points), dtype=np.int64)
    rank[within] = moocore.pareto_rank(points[within])
    rank[~within] = np.unique(excess[~within], return_inverse=True)[1] + rank[within].max(initial=-1) + 1
    return rank


def crowding_distance(points: Floats) -> Floats:
    """Return how far apart the two neighbours of each point are, summed over objectives in parts of their spans.

    The ends of every objective are infinitely far from the rest (Deb et al., NSGA-II, IEEE TEC 2002). Of equal values
    the earlier row counts as the smaller; a point that repeats an earlier one has distance 0.

    Args:
        points: `[points, objectives]`, finite.
    """
    first = np.sort(np.unique(points, axis=0, return_index=True)[1])
    distances = np.zeros(len(points))
    for values in points[first].T:
        ascending = np.argsort(values, kind="stable")
        span = values.max() - values.min()
        distances[first[ascending[[0, -1]]]] = np.inf
        if span > 0:
            distances[first[ascending[1:-1]]] += (values[ascending[2:]] - values[ascending[:-2]]) / span
    return distances
