"""Points in fronts, one behind the other, kept so as points come."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Fronts:
    """Sorts points as NSGA-II does: the first front is what no point dominates, the next what only the first does, ….

    A point that comes goes behind the last front that dominates it; whom it dominates there moves one front back, and
    so on. So it costs a look at the fronts behind, where sorting everything anew would look at all points.
    """

    def __init__(self) -> None:
        self._fronts: list[tuple[Floats, Ints]] = []

    def add(self, number: int, point: Sequence[float]) -> None:
        """Add a point, every value finite and to be minimised."""
        rank, points, numbers = self.rank(point), np.array([point], dtype=np.float64), np.array([number])
        while len(numbers) and rank < len(self._fronts):
            members, theirs = self._fronts[rank]
            back = _dominated(members, points)
            if back.all():  # and with them all behind
                break
            self._fronts[rank] = np.vstack([members[~back], points]), np.append(theirs[~back], numbers)
            points, numbers = members[back], theirs[back]
            rank += 1
        if len(numbers):
            self._fronts.insert(rank, (points, numbers))

    def rank(self, point: Sequence[float]) -> int:
        """Return how many fronts dominate a point: its own one's place, 0 is first, if it was added."""
        one = np.array([point], dtype=np.float64)
        places = range(len(self._fronts))
        return bisect_left(places, True, key=lambda place: not _dominates(self._fronts[place][0], one))

    def members(self, rank: int) -> tuple[Ints, Floats]:
        """Return the numbers of one front, ascending, and their points, `[points, objectives]`."""
        points, numbers = self._fronts[rank]
        order = np.argsort(numbers)
        return numbers[order], points[order]

    def before(self, rank: int) -> int:
        """Return how many points the fronts before one have."""
        return sum(len(numbers) for _, numbers in self._fronts[:rank])

    def __len__(self) -> int:
        """Return how many points there are."""
        return self.before(len(self._fronts))


def _dominated(points: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return which points some of the others dominate."""
    there, here = others[:, None], points[None]
    pairs = (there <= here).all(axis=2) & (there < here).any(axis=2)
    dominated: NDArray[np.bool_] = np.any(pairs, axis=0)
    return dominated


def _dominates(points: Floats, one: Floats) -> bool:
    return bool(((points <= one).all(axis=1) & (points < one).any(axis=1)).any())
