"""Rungs: the epochs at which trials are compared, and from which only the best part of them goes on. No Ray.

The order is NSGA-II's: by non-dominated rank, then by distance to the neighbours, so that the whole range of costs
stays.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

from search.fronts import Floats, Fronts, Ints


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
        self._rungs: dict[int, _Rung] = {}  # by epoch

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
        rung = self._rungs.setdefault(epoch, _Rung())
        new = number not in rung.entries
        if new:
            rung.enter(number, tuple(point), excess)
        return new

    def goes_on(self, number: int, epoch: int) -> bool:
        """Whether none dominates a trial among the n entered at a rung, or it is among the first ⌈n/factor⌉ of them."""
        rung = self._rungs[epoch]
        before, numbers, points = rung.level_of(number)
        places = -(-len(rung.entries) // self._factor) - before
        if before == 0 or len(numbers) <= places:
            return True
        by_distance = np.argsort(-crowding_distance(points), kind="stable")
        return number in numbers[by_distance[: max(0, places)]]


class _Rung:
    """The trials of one rung: in fronts if they are within limits, behind them by the excess."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[tuple[float, ...], float]] = {}  # number → point, excess
        self._within = Fronts()
        self._beyond: list[tuple[float, int]] = []  # excess and number, ascending

    def enter(self, number: int, point: tuple[float, ...], excess: float) -> None:
        self.entries[number] = point, excess
        if excess > 0:
            insort(self._beyond, (excess, number))
        else:
            self._within.add(number, point)

    def level_of(self, number: int) -> tuple[int, Ints, Floats]:
        """Return how many trials are better than one, and the numbers, ascending, and points of its equals."""
        point, excess = self.entries[number]
        if excess <= 0:
            rank = self._within.rank(point)
            return self._within.before(rank), *self._within.members(rank)
        low, high = bisect_left(self._beyond, (excess, -1)), bisect_right(self._beyond, (excess, math.inf))
        equals = [number for _, number in self._beyond[low:high]]
        return len(self._within) + low, np.array(equals), np.array([self.entries[equal][0] for equal in equals])


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
