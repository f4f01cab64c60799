"""The choice of candidates, against hypervolumes counted cell by cell."""

from itertools import product

import numpy as np
import pytest

from search.surrogate import choice as module
from search.surrogate.choice import choose


def volume(points):
    """Count the cells of the grid through all coordinates that some point dominates, each with its size."""
    points = [point for point in np.atleast_2d(points) if len(point) and (np.asarray(point) < 1).all()]
    if not points:
        return 0.0
    edges = [sorted({*(float(point[axis]) for point in points), 1.0}) for axis in range(len(points[0]))]
    total = 0.0
    for cell in product(*(range(len(edge) - 1) for edge in edges)):
        corner = [edge[place] for edge, place in zip(edges, cell, strict=True)]
        if any(all(a <= b for a, b in zip(point, corner, strict=True)) for point in points):
            total += np.prod([edge[place + 1] - edge[place] for edge, place in zip(edges, cell, strict=True)])
    return float(total)


def eager(candidates, front, count):
    """Ask all candidates for their gain before every choice."""
    chosen, reached = [], [*front]
    while len(chosen) < count:
        gains = [volume([*reached, point]) - volume(reached) for point in candidates]
        best = int(np.argmax(gains))
        if gains[best] <= 1e-12:
            break
        chosen.append(best)
        reached.append(candidates[best])
    return chosen


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_greedy_choice_that_asks_every_candidate_every_time(objectives, seed):
    rng = np.random.default_rng(seed)
    candidates, front = rng.uniform(0, 1.1, (12, objectives)), rng.uniform(0.4, 1, (3, objectives))
    assert choose(candidates, front, 4) == eager(candidates, front, 4)


def test_over_nothing_the_first_is_the_largest_box():
    candidates = np.array([[0.2, 0.9], [0.5, 0.5], [0.9, 0.1]])
    assert choose(candidates, np.zeros((0, 2)), 3) == [1, 2, 0]


def test_what_gains_nothing_is_not_chosen():
    candidates = np.array([[0.5, 0.5], [0.5, 0.5], [0.4, 1.2], [0.8, 0.8], [0.3, 0.6]])
    assert choose(candidates, np.array([[0.4, 0.4]]), 5) == [4]


def test_of_nothing_nothing_is_chosen():
    assert choose(np.zeros((0, 2)), np.array([[0.4, 0.4]]), 5) == []


@pytest.mark.parametrize("objectives", [2, 3])
def test_what_others_of_the_front_dominate_changes_nothing_and_is_not_measured(objectives, monkeypatch):
    rng = np.random.default_rng(0)
    candidates, front = rng.uniform(0, 1, (12, objectives)), rng.uniform(0.4, 1, (3, objectives))
    alone = choose(candidates, front, 4)
    measured = []
    monkeypatch.setattr(
        module, "_volume", lambda points, volume=module._volume: measured.append(points) or volume(points)
    )
    dominated = np.repeat(front, 50, axis=0) + rng.uniform(0, 0.1, (150, objectives))
    assert choose(candidates, np.vstack([dominated, front]), 4) == alone
    assert max(map(len, measured)) <= 3 + 4
