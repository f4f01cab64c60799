import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.rungs import Rungs

# ── the definition, in loops ─────────────────────────────────────────────────────────────────────────────────────────


def dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def slow_order(entries):
    """Return the levels of a rung, best first, each as numbers by distance; `entries` are (number, point, excess)."""
    left, levels = sorted(entry for entry in entries if entry[2] == 0), []
    while left:
        level = [entry for entry in left if not any(dominates(other[1], entry[1]) for other in left)]
        left = [entry for entry in left if entry not in level]
        levels.append(level)
    beyond = sorted(entry for entry in entries if entry[2] > 0)
    levels += [[entry for entry in beyond if entry[2] == excess] for excess in sorted({entry[2] for entry in beyond})]
    return [[number for _, number in sorted(slow_distances(level))] for level in levels]


def slow_distances(level):
    """Return (−distance, number) of each entry of a level, which is in the order of numbers."""
    different = {}
    for number, point, _ in level:
        different.setdefault(point, number)
    distance = {number: 0.0 for number, _, _ in level}
    for axis in range(len(level[0][1])):
        line = sorted((point[axis], number) for point, number in different.items())
        span = line[-1][0] - line[0][0]
        for place, (_, number) in enumerate(line):
            if place in (0, len(line) - 1):
                distance[number] = math.inf
            elif span > 0:
                distance[number] += (line[place + 1][0] - line[place - 1][0]) / span
    return [(-distance[number], number) for number, _, _ in level]


def slow_goes_on(entries, number, factor):
    levels = slow_order(entries)
    best = [number for level in levels for number in level][: math.ceil(len(entries) / factor)]
    return number in levels[0] or number in best


def arrivals(objectives):
    """Streams of trials at a rung: few different values, so that many are equal or repeat; some beyond limits."""
    values = st.integers(0, 5).map(float)
    entry = st.tuples(st.tuples(*[values] * objectives), st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5]))
    return st.lists(entry, min_size=1, max_size=40)


@pytest.mark.parametrize("objectives", [2, 3])
def test_decisions_are_those_of_the_definition(objectives):
    @settings(max_examples=150, deadline=None)
    @given(stream=arrivals(objectives), factor=st.integers(2, 4), seed=st.integers(0, 9))
    def check(stream, factor, seed):
        numbers = random.Random(seed).sample(range(100), len(stream))
        rungs, entries = Rungs(factor), []
        for number, (point, excess) in zip(numbers, stream, strict=True):
            entries.append((number, point, excess))
            rungs.enter(number, 1, point, excess)
            assert rungs.goes_on(number, 1) == slow_goes_on(entries, number, factor)

    check()


@settings(deadline=None)
@given(stream=arrivals(2), seed=st.integers(0, 9))
def test_the_order_in_which_trials_arrive_changes_nothing_about_those_who_are_there(stream, seed):
    entries = [(number, point, excess) for number, (point, excess) in enumerate(stream)]
    decisions = []
    for arrived in (entries, random.Random(seed).sample(entries, len(entries))):
        rungs = Rungs(factor=3)
        for number, point, excess in arrived:
            rungs.enter(number, 0, point, excess)
        decisions.append([rungs.goes_on(number, 0) for number in range(len(entries))])
    assert decisions[0] == decisions[1]


# ── what the definition means ────────────────────────────────────────────────────────────────────────────────────────


def entered(points, excess=None, factor=3):
    """Return who goes on of trials that are all at a rung."""
    rungs = Rungs(factor)
    for number, point in enumerate(points):
        rungs.enter(number, 0, point, excess[number] if excess else 0.0)
    return [number for number in range(len(points)) if rungs.goes_on(number, 0)]


def test_the_first_trial_goes_on_and_whatever_none_dominates():
    assert entered([(5.0, 5.0)]) == [0]
    assert entered([(float(cost), -float(cost)) for cost in range(9)]) == list(range(9))


def test_of_dominated_trials_those_far_from_others_go_on_first():
    front, behind = [(0.0, 0.0)], [(1.0, 9.0), (2.0, 8.0), (2.5, 7.5), (3.0, 7.0), (6.0, 4.0), (9.0, 1.0)]
    assert entered(front + behind, factor=2) == [0, 1, 5, 6]  # of 7 trials 4: the front, both ends, the widest gap


def test_of_equal_trials_the_lowest_number_goes_on():
    assert entered([(0.0, 0.0), *[(1.0, 1.0)] * 5]) == [0, 1]


def test_trials_beyond_limits_come_behind_all_others_by_how_far():
    points = [(0.0, 0.0), (9.0, 9.0), (0.0, 0.0), (8.0, 8.0)]
    assert entered(points, excess=[0.2, 0.0, 0.1, 0.0], factor=2) == [1, 3]
    assert entered(points, excess=[0.2, 0.3, 0.1, 0.4], factor=2) == [0, 2]


@pytest.mark.parametrize(
    ("factor", "first", "last", "rungs"),
    [
        (3, 0, 0, []),
        (3, 0, 1, [0]),
        (3, 0, 3, [0, 1]),
        (3, 0, 9, [0, 1, 3]),
        (3, 0, 26, [0, 1, 3]),
        (3, 1, 9, [1, 3]),
        (3, 2, 20, [2, 6]),
        (2, 0, 4, [0, 1, 2]),
        (2, 1, 1, []),
    ],
)
def test_rungs_are_epochs_that_a_trial_can_leave_so_many_times_behind(factor, first, last, rungs):
    assert Rungs(factor, first).epochs(last) == rungs


def test_a_trial_counts_once_at_each_rung_with_what_it_measured_first():
    rungs = Rungs(factor=2)
    assert rungs.enter(0, 1, (1.0, 1.0))
    assert not rungs.enter(0, 1, (9.0, 9.0))
    assert rungs.enter(0, 2, (1.0, 1.0))
    rungs.enter(1, 1, (2.0, 2.0))
    assert rungs.goes_on(0, 1)
    assert not rungs.goes_on(1, 1)  # the second of two


# ── the whole range of costs ─────────────────────────────────────────────────────────────────────────────────────────

LAST, FACTOR = 9, 3


def curves(trials, seed=0):
    """Return cost and accuracy after each epoch: larger networks are more accurate, some widths are ill chosen."""
    draw = random.Random(seed)
    for _ in range(trials):
        cost, fault = draw.uniform(0.05, 1), abs(draw.gauss(0, 0.05))
        final = 0.95 - 0.3 * (1 - cost) ** 2 - fault
        yield cost, [final - (0.5 * (1 - cost) + 2 * fault) * math.exp(-epoch / 2) for epoch in range(LAST + 1)]


def swept(trials, goes_on):
    """Run trials four at a time; return the costs of those that finish and how many epochs were trained."""
    waiting, running, finished, epochs = list(enumerate(curves(trials))), [], [], 0
    while waiting or running:
        while waiting and len(running) < 4:
            running.append((0, *waiting.pop(0)))
        epoch, number, (cost, accuracy) = running.pop(0)
        if epoch == LAST:
            finished.append(cost)
        elif epoch not in (0, 1, 3) or goes_on(number, epoch, cost, accuracy[epoch]):
            running.append((epoch + 1, number, (cost, accuracy)))
            epochs += 1
    return finished, epochs


def by_fronts():
    rungs = Rungs(FACTOR)

    def goes_on(number, epoch, cost, accuracy):
        rungs.enter(number, epoch, (-accuracy, cost))
        return rungs.goes_on(number, epoch)

    return goes_on


def by_accuracy():
    reached = {}

    def goes_on(number, epoch, cost, accuracy):
        known = reached.setdefault(epoch, [])
        known.append(accuracy)
        return accuracy >= sorted(known, reverse=True)[math.ceil(len(known) / FACTOR) - 1]

    return goes_on


def test_fronts_keep_the_whole_range_of_costs_and_accuracy_alone_drops_the_cheap_half():
    costs, epochs = swept(300, by_fronts())
    assert [any(low <= cost < low + 0.2 for cost in costs) for low in (0.05, 0.2, 0.4, 0.6, 0.75)] == [True] * 5
    assert epochs < 0.4 * 300 * LAST
    cheap = sum(cost < 0.5 for cost in costs)
    assert cheap > 0.25 * len(costs)
    alone, _ = swept(300, by_accuracy())
    assert not any(cost < 0.4 for cost in alone[4:])  # the first four met no others
    assert swept(300, by_fronts()) == (costs, epochs)
