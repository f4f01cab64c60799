"""The front, its hypervolume, its knee, and the trial to take under limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import ModelSpec, Policy
from search.config import Objective
from search.errors import SweepError
from search.pareto import Limits, front, hypervolume, hypervolume_history, knee, pick, pick_knee
from search.results import Metrics, State, TrialRecord
from search.units import percent, short_count

POLICY = Policy(model=ModelSpec(name="resnet20"), network="0" * 16, widths={})
BASELINE = {"accuracy": 0.9, "macs": 100, "params": 1000, "latency_ms": 10.0}
TWO: tuple[Objective, ...] = ("accuracy", "macs")
THREE: tuple[Objective, ...] = ("accuracy", "macs", "latency_ms")


def trial(number, accuracy=0.9, macs=50, params=500, latency_ms=5.0, state=State.FINISHED, **more):
    metrics = Metrics(1, accuracy, 0.1, macs, params, latency_ms)
    return TrialRecord(number, state, {}, POLICY, (metrics,), **more)


def trials(most=8):
    """Trials on a coarse grid, so that ties and equal points are common."""
    places = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
    return st.lists(places, max_size=most).map(
        lambda found: [trial(n, a / 5, 20 * m, 200 * p, 2.0 * t) for n, (a, m, p, t) in enumerate(found)]
    )


def costs_of(record, objectives):
    return tuple(
        -getattr(record.metrics, name) if name == "accuracy" else getattr(record.metrics, name) for name in objectives
    )


def at_least_as_good(one, other, objectives):
    return all(a <= b for a, b in zip(costs_of(one, objectives), costs_of(other, objectives), strict=True))


# ── front ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(records=trials(), objectives=st.sampled_from([TWO, THREE, ("latency_ms", "accuracy")]))
def test_a_trial_is_on_the_front_if_no_other_is_better_and_none_before_it_is_equal(records, objectives):
    expected = {
        one.number
        for one in records
        if not any(
            at_least_as_good(other, one, objectives)
            and (not at_least_as_good(one, other, objectives) or other.number < one.number)
            for other in records
        )
    }
    assert {record.number for record in front(records, objectives)} == expected


@given(records=trials(most=6))
def test_the_front_is_the_smallest_subset_that_covers_every_trial(records):
    def covers(some):
        return all(any(at_least_as_good(one, other, THREE) for one in some) for other in records)

    subsets = (some for size in range(len(records) + 1) for some in itertools.combinations(records, size))
    smallest = next(some for some in subsets if covers(some))
    members = front(records, THREE)
    assert covers(members)
    assert {costs_of(record, THREE) for record in members} == {costs_of(record, THREE) for record in smallest}
    assert len(members) == len(smallest)


@given(records=trials(), order=st.randoms())
def test_the_front_is_sorted_by_cost_and_does_not_depend_on_the_order_of_the_trials(records, order):
    members = front(records, THREE)
    shuffled = list(records)
    order.shuffle(shuffled)
    assert front(shuffled, THREE) == members
    assert members == sorted(
        members, key=lambda record: (record.metrics.macs, record.metrics.latency_ms, record.number)
    )


def test_only_finished_feasible_and_fully_measured_trials_are_on_the_front():
    best = {"accuracy": 1.0, "macs": 1, "params": 1, "latency_ms": 1.0}
    left_out = [
        trial(0, **best, feasible=False),
        trial(1, **best, state=State.STOPPED),
        trial(2, **best, state=State.FAILED),
        trial(3, **best, state=State.RUNNING),
        trial(4, **{**best, "latency_ms": None}),
        trial(5, **{**best, "accuracy": math.nan}),
        replace(trial(6), history=()),
    ]
    there = trial(7, accuracy=0.1, macs=100)
    assert front([*left_out, there], THREE) == [there]
    assert front(left_out, THREE) == []


def test_a_trial_counts_with_its_last_measurement():
    first, last = Metrics(0, 0.99, 0.1, 50, 500), Metrics(1, 0.5, 0.1, 50, 500)
    fell = replace(trial(0), history=(first, last))
    steady = trial(1, accuracy=0.6)
    assert front([fell, steady], TWO) == [steady]


# ── hypervolume ──────────────────────────────────────────────────────────────────────────────────────────────────────


def volume_by_inclusion_and_exclusion(corners):
    """Volume of the union of boxes from the reference (1, 1, …) down to each corner."""
    total = 0.0
    for size in range(1, len(corners) + 1):
        for some in itertools.combinations(corners, size):
            sides = [max(0.0, 1 - max(axis)) for axis in zip(*some, strict=True)]
            total += (-1) ** (size + 1) * math.prod(sides)
    return total


@given(records=trials(most=6), objectives=st.sampled_from([TWO, THREE]), floor=st.sampled_from([0.0, 0.1, 0.5]))
def test_the_hypervolume_is_the_volume_of_the_union_of_dominated_boxes(records, objectives, floor):
    corners = [
        [
            (1 - record.metrics.accuracy) / (1 - floor)
            if name == "accuracy"
            else getattr(record.metrics, name) / BASELINE[name]
            for name in objectives
        ]
        for record in records
    ]
    expected = volume_by_inclusion_and_exclusion(corners)
    volume = hypervolume(records, objectives, BASELINE, accuracy_floor=floor)
    assert volume == pytest.approx(expected, abs=1e-9)
    assert 0 <= volume <= 1


def test_a_trial_at_the_reference_adds_nothing_and_the_ideal_one_would_fill_everything():
    assert hypervolume([trial(0, accuracy=1.0, macs=100)], TWO, BASELINE) == 0
    assert hypervolume([trial(0, accuracy=1.0, macs=0)], TWO, BASELINE) == 1
    assert hypervolume([trial(0, accuracy=0.8, macs=25)], TWO, BASELINE) == pytest.approx(0.8 * 0.75)
    assert hypervolume([], TWO, BASELINE) == 0


@given(records=trials(), objectives=st.sampled_from([TWO, THREE]))
def test_the_history_is_the_hypervolume_after_each_trial_in_the_order_given(records, objectives):
    left_out = [trial(90, feasible=False), trial(91, state=State.FAILED), replace(trial(92), history=())]
    ordered = [*records[::-1], *left_out]
    history = hypervolume_history(ordered, objectives, BASELINE)
    slow = [hypervolume(ordered[:count], objectives, BASELINE) for count in range(1, len(ordered) + 1)]
    assert history == pytest.approx(slow, abs=1e-12)


def test_the_history_of_a_baseline_without_an_objective_is_refused():
    with pytest.raises(SweepError, match="baseline: expected a positive latency_ms"):
        hypervolume_history([], THREE, {"accuracy": 0.9, "macs": 100})


def test_the_hypervolume_refuses_a_baseline_without_the_objective_and_a_floor_that_leaves_no_room():
    with pytest.raises(SweepError, match="baseline: expected a positive latency_ms, got None"):
        hypervolume([trial(0)], THREE, {"accuracy": 0.9, "macs": 100})
    with pytest.raises(SweepError, match="accuracy_floor: expected 0 to below 1, got 1"):
        hypervolume([trial(0)], TWO, BASELINE, accuracy_floor=1.0)


# ── knee ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(records=trials(most=10))
def test_the_knee_of_two_objectives_is_farthest_from_the_line_through_the_ends(records):
    members = front(records, TWO)
    if not members:
        return
    places = [costs_of(record, TWO) for record in members]
    (x0, y0), (x1, y1) = places[0], places[-1]
    # Signed distance up to a constant: positive on the better side of the line from the cheapest to the dearest.
    scale_x, scale_y = (x1 - x0) or 1.0, (y0 - y1) or 1.0
    distances = [-((x - min(x0, x1)) / abs(scale_x)) - (y - min(y0, y1)) / abs(scale_y) for x, y in places]
    chosen = members.index(knee(members, TWO))
    assert distances[chosen] == pytest.approx(max(distances))
    assert all(distance < max(distances) - 1e-9 for distance in distances[:chosen])


def test_on_a_straight_front_every_trial_is_as_good_a_knee_and_the_cheapest_is_taken():
    members = [trial(number, 0.09 * (number + 1), 7 * (number + 1)) for number in range(4)]
    assert knee(members, TWO) == members[0]


def test_the_knee_is_the_trial_after_which_accuracy_gets_dear():
    members = [trial(0, 0.5, 10), trial(1, 0.88, 30), trial(2, 0.9, 100)]
    assert knee(members, TWO).number == 1
    with pytest.raises(SweepError, match="knee: expected a front with at least one trial, got none"):
        knee([], TWO)


# ── pick ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(records=trials(), share=st.sampled_from([0.2, 0.4, 0.6, 1.0]))
def test_pick_takes_the_best_by_accuracy_macs_params_and_number_within_the_limit(records, share):
    within = [record for record in records if record.metrics.macs <= share * 100]
    limits = Limits.parse(max_macs=f"{100 * share:g}%")
    if not within:
        with pytest.raises(SweepError, match="best: no trial"):
            pick(records, TWO, limits, BASELINE)
        return
    ranked = sorted(within, key=lambda it: (-it.metrics.accuracy, it.metrics.macs, it.metrics.params, it.number))
    choice = pick(records, TWO, limits, BASELINE)
    assert choice.record == ranked[0]
    assert choice.runner_up == (ranked[1] if len(ranked) > 1 else None)
    assert choice.within == len(within)


def test_a_network_of_exactly_the_limit_is_within_it_in_spite_of_rounding():
    assert 0.7 * 90 < 63
    choice = pick([trial(0, macs=63)], TWO, Limits.parse(max_macs="70%"), {**BASELINE, "macs": 90})
    assert choice.record.number == 0


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ({}, 0),
        ({"max_macs": "50%"}, 1),
        ({"max_macs": 40}, 2),
        ({"max_params": "4e2"}, 2),
        ({"max_latency_ms": 3.5}, 2),
        ({"max_macs": "50%", "min_accuracy": "98%"}, 1),
        ({"max_macs": "50%", "max_params": None}, 1),
    ],
)
def test_limits_are_parts_of_the_baseline_or_absolute(limits, number):
    records = [trial(0, 0.92, 80, 800, 8), trial(1, 0.9, 50, 500, 5), trial(2, 0.85, 30, 300, 3)]
    assert pick(records, TWO, Limits.parse(**limits), BASELINE).record.number == number


def explanation(*records, **limits):
    return pick(records, TWO, Limits.parse(**limits), BASELINE).explanation


def test_the_explanation_names_the_limits_how_many_are_within_and_the_runner_up():
    assert explanation(trial(0, 0.9, 48), trial(1, 0.8, 40), trial(2, 0.95, 70), max_macs="50%") == (
        "Trial 0 (90.00 % with 48.0 % of the MACs) is the most accurate of the 2 trials within the limits (MACs ≤ 50%)"
        "; the next, trial 1, reaches 80.00 %."
    )
    assert explanation(trial(0, 0.9, 48), trial(1, 0.8, 80), max_macs="50%") == (
        "Trial 0 (90.00 % with 48.0 % of the MACs) is the only one of 2 trials within the limits (MACs ≤ 50%)."
    )
    assert explanation(trial(4)) == "Trial 4 (90.00 % with 50.0 % of the MACs) is the only trial that finished."


@pytest.mark.parametrize(
    ("second", "rule"),
    [({"macs": 60}, "has fewer MACs"), ({"params": 600}, "has fewer parameters"), ({}, "came first")],
)
def test_the_explanation_names_the_rule_that_decided_a_tie(second, rule):
    assert explanation(trial(0), trial(1, **second)).endswith(f"; trial 1 is as accurate, but trial 0 {rule}.")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_macs": "40%"}, "MACs ≤ 40%.: the cheapest trial needs 56.1 % of the baseline's MACs .trial 1"),
        ({"max_macs": 40}, "MACs ≤ 40.: the cheapest trial needs 56 MACs .trial 1"),
        ({"max_params": 200}, "the smallest trial needs 500 parameters .trial 0"),
        ({"max_latency_ms": 1.0}, "the fastest trial needs 5 ms .trial 0"),
        ({"min_accuracy": 0.95}, "the most accurate trial reaches 90.00 % .trial 0"),
        ({"min_accuracy": "110%"}, "reaches 100.0 % of the baseline's accuracy .trial 0"),
        (
            {"max_macs": "40%", "min_accuracy": 0.95},
            "the nearest trial reaches 80.00 % and needs 56.1 % of the baseline's MACs .trial 1",
        ),
    ],
)
def test_no_trial_within_the_limits_is_an_error_that_names_the_nearest(limits, message):
    records = [trial(0, 0.9, 90), trial(1, 0.8, 56.1)]
    with pytest.raises(SweepError, match=f"best: no trial is within the limits .*{message}"):
        pick(records, TWO, Limits.parse(**limits), BASELINE)


def test_nothing_to_pick_from_is_an_error_that_says_why():
    ended = [trial(0, state=State.FAILED), trial(1, state=State.STOPPED), trial(2, feasible=False)]
    with pytest.raises(
        SweepError, match="within the experiment's constraints: 1 failed, 1 stopped early, 1 infeasible"
    ):
        pick(ended, TWO, Limits(), BASELINE)
    with pytest.raises(SweepError, match="constraints: there are none"):
        pick([], TWO, Limits(), BASELINE)
    with pytest.raises(SweepError, match="best: no trial measured latency_ms"):
        pick([trial(0, latency_ms=None)], TWO, Limits.parse(max_latency_ms=3), BASELINE)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_flops": "50%"}, "max_flops: expected one of min_accuracy, max_macs, max_params, max_latency_ms"),
        ({"max_macs": "half"}, "max_macs: expected a number or a percentage, got 'half'"),
        ({"max_macs": "x%"}, "max_macs: expected a number or a percentage, got 'x%'"),
        ({"max_macs": 0}, "max_macs: expected a number or a percentage, got '0'"),
        ({"min_accuracy": 91}, "min_accuracy: expected 0 to 1, or a percentage of the baseline's, got 91"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits, message):
    with pytest.raises(SweepError, match=message):
        Limits.parse(**limits)


# ── the knee within limits ───────────────────────────────────────────────────────────────────────────────────────────


@given(records=trials(), share=st.sampled_from([0.2, 0.4, 0.6, 1.0]))
def test_the_knee_within_limits_is_that_of_the_front_of_the_trials_within_them(records, share):
    within = [record for record in records if record.metrics.params <= share * 1000]
    limits = Limits.parse(max_params=f"{100 * share:g}%")
    if not within:
        with pytest.raises(SweepError, match="best: no trial"):
            pick_knee(records, TWO, limits, BASELINE)
        return
    choice = pick_knee(records, TWO, limits, BASELINE)
    assert choice.record == knee(front(within, TWO), TWO)
    assert choice.within == len(within)


def test_the_knee_is_told_with_the_front_that_it_is_of():
    records = [trial(0, 0.5, 10), trial(1, 0.88, 30), trial(2, 0.9, 100), trial(3, 0.4, 50)]
    assert pick_knee(records, TWO, Limits(), BASELINE).explanation == (
        "Trial 1 (88.00 % with 30.0 % of the MACs) is the knee of the 3 non-dominated trials."
    )
    assert pick_knee(records, TWO, Limits.parse(max_macs="25%"), BASELINE).explanation == (
        "Trial 0 (50.00 % with 10.0 % of the MACs) is the only non-dominated trial within the limits (MACs ≤ 25%)."
    )
    with pytest.raises(SweepError, match="best: no trial measured latency_ms"):
        pick_knee([trial(0, latency_ms=None)], TWO, Limits.parse(max_latency_ms=3), BASELINE)


# ── how numbers are written ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (512, "512"),
        (999, "999"),
        (999.6, "1.00 k"),
        (84_100, "84.1 k"),
        (40_551_000, "40.6 M"),
        (99_960_000, "100 M"),
        (999_600_000, "1.00 G"),
        (1_824_000_000, "1.82 G"),
    ],
)
def test_counts_are_written_with_three_digits(value, text):
    assert short_count(value) == text
    assert percent(0.4804) == "48.0 %"
