"""The surrogate: what it knows before trials, what it learns from them, and what it proposes."""

from dataclasses import replace
from itertools import product

import moocore
import numpy as np
import pytest
import tiny
import torch

from pruning import (
    CostModel,
    ModelSpec,
    NestedRanking,
    Policy,
    QuadraticRanking,
    Recipe,
    SensitivityRanking,
    find_groups,
)
from pruning.curves import Curve
from search.errors import SearchError
from search.results import Metrics, State, TrialRecord
from search.surrogate import Ladder, Observation, Prior, Proposal, Surrogate, observations_of, proposing
from search.surrogate.start import directions

EXAMPLE = torch.zeros(1, 1, 8, 8)
CRITERIA = ("l1", "fpgm")


@pytest.fixture(scope="module")
def ladder():
    """A stem of 8 channels and three blocks of 6: 1,728 networks."""
    network = tiny.Blocks(4, count=3)
    groups = find_groups(network, EXAMPLE)
    return Ladder.of(groups, CostModel(network, groups, EXAMPLE))


@pytest.fixture
def baseline(ladder):
    return {"accuracy": 0.95, "macs": ladder.cost.full.macs, "params": ladder.cost.full.params}


def prior_of(ladder):
    """Every block matters less than the one before."""
    weights = dict(zip(ladder.names, (1.0, 0.8, 0.3, 0.1), strict=True))
    full = dict(zip(ladder.names, ladder.full.tolist(), strict=True))
    return Prior({name: weights[name] * (full[name] - np.arange(full[name] + 1)) for name in ladder.names})


def truth(ladder, widths, criterion):
    """Return accuracies, 0 to 1, of which the prior has the order of the groups, but not the weights."""
    harm = ((ladder.full - widths) * (0.5, 0.6, 0.4, 0.15)).sum(axis=1)
    harm += 0.4 * np.abs(widths[:, 1] - widths[:, 2]) / 6
    return 1 / (1 + np.exp(-(3 - 1.2 * harm + (criterion == "fpgm") * np.where(harm > 2, -0.4, 0.4))))


def recovered(accuracy):
    """Return accuracies after fine-tuning."""
    return 1 / (1 + np.exp(-1.5 - 0.4 * np.log(accuracy / (1 - accuracy))))


def drawn(ladder, count, seed=0, trained=False):
    """Return observations of random directions."""
    rng = np.random.default_rng(seed)
    full = ladder.cost.full.macs
    states = directions(ladder, lambda w: ladder.costs(w)[0].astype(float), rng.uniform(0.3, 1, count) * full, rng)
    found = []
    for widths in ladder.widths(states):
        criterion = str(rng.choice(CRITERIA))
        accuracy = float(truth(ladder, widths[None], criterion)[0])
        last = float(recovered(accuracy)) if trained else None
        found.append(Observation(dict(zip(ladder.names, widths.tolist(), strict=True)), criterion, accuracy, last))
    return found


def surrogate(ladder, baseline, **changes):
    options = {"criteria": CRITERIA, "objectives": ("accuracy", "macs"), "prior": prior_of(ladder), **changes}
    return Surrogate(ladder, baseline=baseline, **options)


def everything(ladder):
    return ladder.widths(np.array([*product(*(range(len(rungs)) for rungs in ladder.rungs))]))


def points(ladder, proposals):
    """Return what policies truly miss: accuracy and MACs."""
    widths = ladder.matrix([one.widths for one in proposals])
    accuracy = [truth(ladder, row[None], one.criterion)[0] for row, one in zip(widths, proposals, strict=True)]
    return np.stack([1 - np.array(accuracy), ladder.costs(widths)[0] / ladder.cost.full.macs], axis=1)


# ── before any trial ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_curves_tell_by_what_the_logarithm_of_the_loss_grows():
    curve = Curve(torch.tensor([2, 4, 8]), torch.tensor([0.8, 0.4, 0.2]).double(), torch.ones(3).double())
    ranking = NestedRanking.from_scores("l1", {"a": torch.arange(8.0)})
    harm = Prior.of_curves(SensitivityRanking(ranking, {"a": curve})).harm["a"]
    assert harm / np.log(2) == pytest.approx([3, 2.5, 2, 1.5, 1, 0.75, 0.5, 0.25, 0])


def test_a_wider_group_never_does_more_harm_whatever_was_measured():
    harm = Prior.of_accuracies({"a": [(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.9)]}).harm["a"]
    odds = [np.log(p / (1 - p)) for p in (0.5, 0.6, 0.6, 0.9)]
    assert harm[1:] == pytest.approx(np.array(odds[3]) - odds)
    assert harm[0] == pytest.approx(2 * harm[1] - harm[2])


def test_a_quadratic_loss_is_asked_for_its_own_best_sets():
    u, factor = torch.tensor([0.1, -0.3, 0.0, 0.2]).double(), torch.randn(4, 4, generator=torch.manual_seed(0)).double()
    ranking = QuadraticRanking("ccp", {"a": u}, {"a": (S := factor @ factor.T)})
    sets = np.array([*product((0, 1), repeat=4)])
    value = np.array([z @ S.numpy() @ z / 2 - u.numpy() @ z for z in sets])
    best = [value[sets.sum(axis=1) == removed].min() for removed in (3, 2, 1, 0)]
    expected = np.maximum.accumulate(best[::-1])[::-1]
    assert Prior.of_quadratic(ranking).harm["a"][1:] == pytest.approx(expected)


def test_the_harm_of_a_policy_is_the_sum_over_its_groups():
    prior = Prior({"a": np.array([5.0, 2, 0]), "b": np.array([3.0, 1, 0])})
    assert prior.of(("b", "a"), np.array([[1, 2], [0, 1], [2, 2]])).tolist() == [1, 5, 0]


def test_a_prior_of_other_groups_is_refused(ladder, baseline):
    known = prior_of(ladder).harm
    without = {name: harm for name, harm in known.items() if name != "stem"}
    with pytest.raises(SearchError, match=r"prior: expected what a cut of 'stem' does, got that of blocks\.0"):
        surrogate(ladder, baseline, prior=Prior(without))
    with pytest.raises(SearchError, match="prior, group 'stem': expected 8 channels, got 4"):
        surrogate(ladder, baseline, prior=Prior(known | {"stem": np.arange(5.0)}))


def test_before_any_trial_the_uncut_network_is_the_baseline_and_harm_orders_the_others(ladder, baseline):
    model, widths = surrogate(ladder, baseline), everything(ladder)
    assert model.predict(ladder.full[None], "l1").mean == pytest.approx([0.95], abs=0.01)
    even = np.array([ladder.full - cut for cut in range(5)])
    assert (np.diff(model.predict(even, "fpgm").mean) < 0).all()
    assert (np.diff(model.predict(even, "fpgm").deviation[:3]) > 0).all()
    harm, known = prior_of(ladder).of(ladder.names, widths), model.predict(widths, "l1").mean
    assert np.corrcoef(harm.argsort().argsort(), known.argsort().argsort())[0, 1] < -0.9


# ── what trials measured ─────────────────────────────────────────────────────────────────────────────────────────────


def record(number, accuracies, *, epochs=2, state=State.FINISHED, params=None, **more):
    policy = Policy(model=ModelSpec(name="m"), network="n", widths={"a": 3}, recipe=Recipe(epochs=epochs))
    history = tuple(Metrics(epoch, accuracy, 0.1, 10, 10) for epoch, accuracy in accuracies.items())
    return TrialRecord(number, state, params or {}, policy, history, **more)


def test_observations_are_the_first_and_the_last_accuracy_of_every_trial_that_did_not_fail():
    records = [
        record(0, {0: 0.1, 1: 0.5, 2: 0.6}),
        record(1, {0: 0.2, 1: 0.5}, state=State.STOPPED, params={"criterion": "fpgm(a=1)"}),
        record(2, {0: 0.3}, state=State.RUNNING),
        record(3, {0: 0.3, 1: 0.5}, state=State.FAILED),
        record(4, {}, state=State.RUNNING),
        record(5, {0: 0.4}, epochs=0, feasible=False),
        record(6, {0: float("nan"), 2: 0.7}),
    ]
    a = {"a": 3}
    assert observations_of(records) == [
        Observation(a, "l1", 0.1, 0.6, True),
        Observation(a, "fpgm(a=1)", 0.2, None, False),
        Observation(a, "l1", 0.3, None, False),
        Observation(a, "l1", 0.4, None, False),
        Observation(a, "l1", None, 0.7, True),
    ]


def test_thirty_trials_teach_what_the_prior_had_wrong(ladder, baseline):
    widths = everything(ladder)
    errors = {}
    for count in (0, 30):
        model = surrogate(ladder, baseline)
        model.fit(drawn(ladder, count))
        found = [model.predict(widths, criterion).mean - truth(ladder, widths, criterion) for criterion in CRITERIA]
        errors[count] = np.abs(found).mean()
    assert errors[30] < 0.03 < 0.1 < errors[0]


def test_a_prior_helps_while_there_are_few_trials(ladder, baseline):
    widths, errors = everything(ladder), []
    for prior in (prior_of(ladder), None):
        model = surrogate(ladder, baseline, prior=prior)
        model.fit(drawn(ladder, 6))
        errors.append(np.abs(model.predict(widths, "l1").mean - truth(ladder, widths, "l1")).mean())
    assert errors[0] < 0.8 * errors[1]


def test_what_many_cuts_taught_helps_where_few_networks_were_trained(ladder, baseline):
    widths, model, trials = everything(ladder), surrogate(ladder, baseline), drawn(ladder, 60, trained=True)
    trained = trials[:3]
    model.fit(trained)
    alone = np.abs(model.predict(widths, "l1").mean - recovered(truth(ladder, widths, "l1"))).mean()
    model.fit([*(replace(one, last=None) for one in trials[3:]), *trained])
    learned = np.abs(model.predict(widths, "l1").mean - recovered(truth(ladder, widths, "l1"))).mean()
    assert learned < 0.03
    assert learned < 0.8 * alone


def test_the_truth_is_within_two_deviations_most_of_the_time(ladder, baseline):
    model, widths = surrogate(ladder, baseline), everything(ladder)
    model.fit(drawn(ladder, 30))
    found = model.predict(widths, "fpgm")
    within = np.abs(truth(ladder, widths, "fpgm") - found.mean) <= 2 * found.deviation + 0.01
    assert within.mean() > 0.9


def test_proposals_of_several_criteria_are_predicted_as_each_alone(ladder, baseline):
    model = surrogate(ladder, baseline)
    model.fit(drawn(ladder, 10, trained=True))
    proposals = model.propose(6, low=0, high=1e9, candidates=2000)
    found = model.expect(proposals)
    for number, one in enumerate(proposals):
        alone = model.predict(ladder.matrix([one.widths]), one.criterion)
        assert (found.mean[number], found.deviation[number]) == pytest.approx((alone.mean[0], alone.deviation[0]))
    assert len(model.expect([]).mean) == 0


@pytest.mark.parametrize(("trials", "bred"), [(10, 1926), (900, 1036), (1500, 436), (1700, 436)])
def test_children_are_bred_after_any_number_of_trials(ladder, baseline, monkeypatch, trials, bred):
    counts, plain = [], proposing.evolve
    monkeypatch.setattr(proposing, "evolve", lambda *args: counts.append(args[4]) or plain(*args))
    model = surrogate(ladder, baseline)
    model.fit([Observation(one.widths, "l1") for one in drawn(ladder, trials)])
    model.propose(2, low=0, high=1e9, candidates=3000)
    assert counts == [bred]  # of 3,000, without 1,000 directions, 64 of least harm, and the trials: half at most


def test_a_prediction_says_whether_it_is_of_a_trained_network(ladder, baseline):
    model, widths = surrogate(ladder, baseline), everything(ladder)[:3]
    assert not model.predict(widths, "l1").trained
    model.fit(drawn(ladder, 5))
    assert not model.predict(widths, "l1").trained
    model.fit(drawn(ladder, 5, trained=True))
    assert model.predict(widths, "l1").trained


def test_criteria_that_are_not_listed_are_left_out_and_refused(ladder, baseline):
    model = surrogate(ladder, baseline)
    before = model.propose(2, low=0, high=1e9, candidates=2000)
    model.fit([replace(one, criterion="taylor") for one in drawn(ladder, 5)])
    assert model.propose(2, low=0, high=1e9, candidates=2000) == before
    with pytest.raises(SearchError, match="criterion: expected one of l1, fpgm, got 'taylor'"):
        model.predict(ladder.full[None], "taylor")


# ── proposals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_proposals_dominate_more_than_twice_as_many_random_directions(ladder, baseline):
    full, model, seen = ladder.cost.full.macs, surrogate(ladder, baseline), drawn(ladder, 6)
    for _ in range(4):
        model.fit(seen)
        for one in model.propose(4, low=0.3 * full, high=full, candidates=5000):
            accuracy = float(truth(ladder, ladder.matrix([one.widths]), one.criterion)[0])
            seen.append(Observation(one.widths, one.criterion, accuracy))
    widths = everything(ladder).tolist()
    every = [Proposal(dict(zip(ladder.names, row, strict=True)), label) for label in CRITERIA for row in widths]
    costs = ladder.costs(ladder.matrix([one.widths for one in every]))[0]
    allowed = [one for one, cost in zip(every, costs, strict=True) if 0.3 * full <= cost <= full]
    best, random, found = (
        moocore.hypervolume(points(ladder, some), ref=1.0) for some in (allowed, drawn(ladder, 44, seed=1), seen)
    )
    assert found > 0.93 * best > 1.05 * random


def test_proposals_are_new_differ_and_keep_to_widths_and_budget(ladder, baseline):
    coarse = Ladder(ladder.names, tuple(np.array([2, 4, full]) for full in ladder.full), ladder.cost)
    full, model = ladder.cost.full.macs, surrogate(coarse, baseline)
    known = drawn(coarse, 20)
    model.fit(known)
    found = model.propose(12, low=0.4 * full, high=0.8 * full, candidates=3000)
    costs = ladder.costs(ladder.matrix([one.widths for one in found]))[0]
    assert (0.4 * full <= costs).all()
    assert (costs <= 0.8 * full).all()
    assert all(width in rungs for one in found for rungs, width in zip(coarse.rungs, one.widths.values(), strict=True))
    tried = {(*one.widths.values(), one.criterion) for one in known}
    new = {(*one.widths.values(), one.criterion) for one in found}
    assert len(new) == len(found) == 12
    assert not tried & new


def test_a_budget_can_be_one_of_parameters(ladder, baseline):
    full = ladder.cost.full.params
    found = surrogate(ladder, baseline).propose(4, low=0.5 * full, high=0.6 * full, budget="params", candidates=3000)
    params = ladder.costs(ladder.matrix([one.widths for one in found]))[1]
    assert len(found) == 4
    assert ((0.5 * full <= params) & (params <= 0.6 * full)).all()


def test_equal_arguments_give_equal_proposals_and_other_seeds_others(ladder, baseline):
    found = []
    for seed in (0, 0, 1):
        model = surrogate(ladder, baseline)
        model.fit(drawn(ladder, 10))
        found.append(model.propose(6, low=0, high=1e9, candidates=1200, seed=seed))
    assert found[0] == found[1] != found[2]


def test_what_runs_is_not_proposed_again_and_counts_as_reached(ladder, baseline):
    model = surrogate(ladder, baseline)
    model.fit(drawn(ladder, 10))
    options = {"low": 0, "high": 1e9, "candidates": 3000}
    first = model.propose(3, **options)
    then = model.propose(3, **options, pending=first)
    assert not [one for one in then if one in first]
    assert model.propose(6, **options)[3:] == then


def test_all_policies_are_proposed_before_there_are_none(ladder, baseline):
    rungs = (*(np.array([full]) for full in ladder.full[:2]), *(np.array([2, full]) for full in ladder.full[2:]))
    small, full = Ladder(ladder.names, rungs, ladder.cost), ladder.cost.full.macs
    found = surrogate(small, baseline).propose(20, low=0, high=full - 1, candidates=2000)
    assert len({(*one.widths.values(), one.criterion) for one in found}) == len(found) == 6
    assert surrogate(small, baseline).propose(20, low=0, high=1, candidates=2000) == []


def test_three_objectives_trade_parameters_and_an_estimate_as_well(ladder, baseline):
    full = ladder.cost.full.macs
    options = {"low": 0.3 * full, "high": full, "candidates": 5000}
    three = surrogate(ladder, baseline, objectives=("accuracy", "macs", "params")).propose(8, **options)
    assert len(three) == 8

    def milliseconds(widths):
        return 1.0 + widths[:, 0]  # the stem alone takes time

    slow = surrogate(
        ladder,
        baseline | {"latency_ms": 9.0},
        objectives=("accuracy", "latency_ms"),
        estimates={"latency_ms": milliseconds},
    )
    inner = [width for one in slow.propose(4, **options) for name, width in one.widths.items() if name != "stem"]
    assert set(inner) == {6}
    with pytest.raises(SearchError, match="costs: expected macs, params or one with an estimate, got latency_ms"):
        surrogate(ladder, baseline, objectives=("accuracy", "latency_ms"))
    with pytest.raises(SearchError, match="costs: expected macs, params or one with an estimate, got accuracy"):
        surrogate(ladder, baseline).propose(1, low=0, high=1, budget="accuracy")
    with pytest.raises(SearchError, match="objectives: expected accuracy among them, got macs, params"):
        surrogate(ladder, baseline, objectives=("macs", "params"))
