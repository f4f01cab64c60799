"""Candidates: policies bred towards the front that a model predicts, on numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from search.surrogate.ladder import Integers, Ladder

Points = NDArray[np.float64]
Chosen = Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]

GENERATIONS = 20
PARENTS = 500
"""So many at most, evenly along the front."""
NEAR = 5
"""The other parent is so many places away along the front at most: of like cost."""
STEPS = (0.02, 0.1, 0.3)
"""Deviations of a change of one group, as parts of its ladder; each child has one of them."""
CHANGED = 2.0
"""So many groups of a child change on average."""
RELABELLED = 0.05
"""The part of the children that gets any criterion."""
FACTORS = np.random.default_rng(0).integers(1, 2**62, size=1024)


@dataclass(frozen=True)
class Candidates:
    """Policies and what is expected of them.

    Attributes:
        states: rungs of the ladder, int64 `[policies, groups]`.
        labels: of their criteria, int64 `[policies]`.
        points: objectives, to be minimised, `[policies, objectives]`.
    """

    states: Integers
    labels: Integers
    points: Points

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, chosen: Chosen) -> Candidates:
        """Return some of them."""
        index = np.asarray(chosen, dtype=None if len(chosen) else np.intp)
        return Candidates(self.states[index], self.labels[index], self.points[index])

    def without(self, others: Candidates) -> Candidates:
        """Return those that are not among others."""
        return self.of(~np.isin(hashes(self.states, self.labels), hashes(others.states, others.labels)))

    def and_others(self, others: Candidates) -> Candidates:
        """Return both, these first."""
        return Candidates(
            np.vstack([self.states, others.states]),
            np.concatenate([self.labels, others.labels]),
            np.vstack([self.points, others.points]),
        )

    def front(self) -> Candidates:
        """Return those that no other dominates, by their last objective; of equal points one."""
        best = self.of(moocore.is_nondominated(self.points, keep_weakly=False)) if len(self) else self
        return best.of(np.argsort(best.points[:, -1], kind="stable"))


Score = Callable[[Integers, Integers], Candidates]
"""From states and labels to those of them that may be proposed, with their objectives."""


def evolve(
    score: Score, ladder: Ladder, labels: int, first: Candidates, count: int, rng: np.random.Generator
) -> Candidates:
    """Breed candidates from the front of those before, generation after generation.

    A child takes each group from one of two parents that are neighbours on the front, or all from one; then a few
    groups change.

    Args:
        score: keeps what may be proposed.
        ladder: the widths that there are.
        labels: how many criteria there are.
        first: the first generation.
        count: how many children are bred in all.
        rng: all chance.

    Returns:
        The last front with the last children, each policy once.
    """
    best, born = first.front(), first
    for _ in range(GENERATIONS if len(first) else 0):
        parents = best.of(np.linspace(0, len(best) - 1, min(len(best), PARENTS)).round().astype(np.intp))
        born = score(*_children(parents, ladder, labels, count // GENERATIONS, rng))
        best = best.and_others(born).front()
    return _once(best.and_others(born))


def hashes(states: Integers, labels: Integers) -> Integers:
    """Return a number for each policy that tells it from others, int64 `[policies]`."""
    columns = np.column_stack([states, labels])
    return columns @ np.resize(FACTORS, columns.shape[1])


def _children(
    parents: Candidates, ladder: Ladder, labels: int, count: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    groups = len(ladder.rungs)
    one = rng.integers(len(parents), size=count)
    other = np.clip(one + rng.integers(-NEAR, NEAR + 1, size=count), 0, len(parents) - 1)
    crossed = (rng.random((count, groups)) < 0.5) & (rng.random((count, 1)) < 0.5)
    states = np.where(crossed, parents.states[other], parents.states[one])
    changes = rng.normal(size=(count, groups)) * rng.choice(STEPS, size=(count, 1)) * (ladder.top + 1)
    changes = np.copysign(np.ceil(np.abs(changes)), changes).astype(np.int64)
    changes[rng.random((count, groups)) >= CHANGED / groups] = 0
    states = np.clip(states + changes, 0, ladder.top)
    of_child = np.where(rng.random(count) < RELABELLED, rng.integers(labels, size=count), parents.labels[one])
    return states, of_child


def _once(candidates: Candidates) -> Candidates:
    _, first = np.unique(hashes(candidates.states, candidates.labels), return_index=True)
    return candidates.of(np.sort(first))
