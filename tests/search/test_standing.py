import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import ModelSpec, Policy
from search.errors import SweepError
from search.pareto import front, hypervolume
from search.results import Metrics, State, TrialRecord
from search.standing import Standing

OBJECTIVES = ("accuracy", "macs")
BASELINE = {"accuracy": 0.9, "macs": 1000, "params": 100}
POLICY = Policy(model=ModelSpec(name="resnet20"), network="f", widths={})


def record(number, state, accuracy, macs, feasible):
    history = (Metrics(1, accuracy / 8, 0.5, 100 * macs, 1),) if state is not State.FAILED else ()
    return TrialRecord(number, state, {}, POLICY, history, feasible=feasible)


ended = st.builds(
    lambda *values: values,
    st.sampled_from([State.FINISHED] * 4 + [State.STOPPED, State.FAILED, State.RUNNING]),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([True, True, False]),
)


@given(trials=st.lists(ended, max_size=25), seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 4), min_size=25))
def test_told_bit_by_bit_in_any_order_it_is_what_all_trials_make(trials, seed, sizes):
    records = [record(number, *values) for number, values in enumerate(trials)]
    random.Random(seed).shuffle(records)
    standing, left = Standing(OBJECTIVES, BASELINE), list(records)
    for size in sizes:
        standing, left = standing.plus(left[:size]), left[size:]
    over = [item for item in records if item.state is not State.RUNNING]
    assert list(standing.front) == front(over, OBJECTIVES)
    assert standing.hypervolume == hypervolume(over, OBJECTIVES, BASELINE)
    assert standing.ended == Counter(item.state for item in over)
    assert standing.beyond == sum(item.state is State.FINISHED and not item.feasible for item in over)
    assert list(standing.failures) == [item for item in over if item.state is State.FAILED][-3:]


def test_a_standing_does_not_change_when_more_is_told():
    before = Standing(OBJECTIVES, BASELINE).plus([record(0, State.FINISHED, 4, 4, True)])
    volume = before.hypervolume
    after = before.plus([record(1, State.FINISHED, 8, 1, True)])
    assert (before.ended.total(), before.hypervolume) == (1, volume)
    assert (after.ended.total(), [item.number for item in after.front]) == (2, [1])
    assert after.hypervolume > volume


def test_a_baseline_without_an_objective_is_told_only_where_it_matters():
    standing = Standing(("accuracy", "latency_ms"), BASELINE).plus([record(0, State.FINISHED, 4, 4, True)])
    assert standing.ended == {State.FINISHED: 1}
    with pytest.raises(SweepError, match="expected a positive latency_ms"):
        _ = standing.hypervolume
