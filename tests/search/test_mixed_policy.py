"""A policy whose groups are ranked by different criteria, on its way through the program."""

from dataclasses import replace

import pytest
import tiny
import torch

from pruning import CRITERIA, AuxiliaryPlacement, CriterionSpec, MixedRanking, Policy, hash_weights
from search import rankings
from search.apply import apply_policy
from search.figures import table
from search.prepare import prepare
from search.rankings import policy_ranking, ranking_for
from search.results import State, TrialRecord
from search.tracking import writing
from search.trial import run_trial

L1, FPGM, TAYLOR, CCP, LASSO = (CriterionSpec(name=name) for name in ("l1", "fpgm", "taylor", "ccp", "lasso"))
BLOCKS = {f"blocks.{number}.conv1": 3 for number in range(4)}


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as an applied policy has: sums of several threads differ in their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(
        tiny.experiment(
            tmp_path_factory.mktemp("sweeps"),
            model="tiny:blocks",
            baseline={"epochs": 1},
            auxiliary={"heads": {"epochs": 1}},
            recipe={"epochs": 1, "batch_size": 50},
            search={"criterion": ["l1", "fpgm"], "ranking_images": 30},
        )
    )


@pytest.fixture
def asked(monkeypatch):
    """Return which rankings were asked for, in order."""
    calls = []
    monkeypatch.setattr(rankings, "ranking_for", lambda *args: calls.append(args[1:]) or ranking_for(*args))
    return calls


def policy(inputs, criterion, widths=BLOCKS, auxiliary=None, **criteria):
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        widths=widths,
        criterion=criterion,
        criteria={f"blocks.{name[1:]}.conv1": spec for name, spec in criteria.items()},
        auxiliary=auxiliary,
        recipe=inputs.experiment.recipe,
        seed=3,
    )


def silent(*_):
    pass


# ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_cuts_each_group_by_its_own_criterion(inputs, asked):
    mixed = policy(inputs, L1, _1=FPGM, _3=TAYLOR)
    outcome = run_trial(mixed, inputs, silent)
    assert asked == [(L1, None), (FPGM, None), (TAYLOR, None)]  # each once
    of_group = {name: ranking_for(inputs, mixed.criterion_of(name), None) for name in BLOCKS}
    assert outcome.kept == {name: ranking.keep(name, 3) for name, ranking in of_group.items()}
    assert len({ranking.criterion for ranking in of_group.values()}) == 3
    for criterion in (L1, FPGM, TAYLOR):
        assert outcome.kept != run_trial(policy(inputs, criterion), inputs, silent).kept


def test_a_policy_of_one_criterion_is_cut_by_its_ranking(inputs, asked):
    assert policy_ranking(inputs, policy(inputs, FPGM)) is ranking_for(inputs, FPGM, None)
    assert isinstance(policy_ranking(inputs, policy(inputs, FPGM, _0=L1)), MixedRanking)


def test_each_criterion_sees_the_auxiliary_losses_that_it_looks_at(inputs, asked):
    place = AuxiliaryPlacement(kind="explicit", positions=(2,))
    mixed = policy(inputs, L1, auxiliary=place, _2=CCP)
    kept = run_trial(mixed, inputs, silent).kept
    assert asked == [(L1, place), (CCP, place)]
    assert kept["blocks.2.conv1"] == ranking_for(inputs, CCP, place).keep("blocks.2.conv1", 3)


def test_the_cut_network_has_the_weights_that_one_of_the_criteria_fitted(inputs):
    mixed = policy(inputs, L1, _1=LASSO)
    mixed = mixed.model_copy(update={"recipe": mixed.recipe.model_copy(update={"epochs": 0})})
    outcome, ranking = run_trial(mixed, inputs, silent), ranking_for(inputs, LASSO, None)
    for number in range(4):
        name, tensor = f"blocks.{number}.conv1", f"blocks.{number}.conv2.weight"
        fitted = ranking.weights(inputs.network(), inputs.groups, {name: 3})[tensor]
        expected = (fitted if number == 1 else inputs.weights[tensor])[:, list(outcome.kept[name])]
        assert hash_weights({"": outcome.network.get_parameter(tensor).detach()}) == hash_weights({"": expected})


def test_equal_policies_written_in_other_ways_give_equal_trials(inputs):
    one = run_trial(policy(inputs, L1, _1=FPGM), inputs, silent)
    other = run_trial(policy(inputs, FPGM, _0=L1, _2=L1, _3=L1), inputs, silent)
    assert hash_weights(one.network.state_dict()) == hash_weights(other.network.state_dict())


# ── taken home ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mixed_policy_applied_twice_is_the_network_of_its_trial(inputs, tmp_path, monkeypatch):
    mixed = policy(inputs, L1, _1=FPGM, _3=LASSO)
    outcome = run_trial(mixed, inputs, silent)
    cache = inputs.experiment.storage / "cache" / "rankings"
    before = tiny.files(cache)
    for name in ("l1", "fpgm"):
        monkeypatch.setattr(CRITERIA.get(name), "rank", None)  # all rankings are known
    applied = [tmp_path / "one", tmp_path / "other"]
    for folder in applied:
        apply_policy(mixed, inputs.experiment, folder)
    hashes = {hash_weights(tiny.load_cut(folder).model.state_dict()) for folder in applied}
    assert hashes == {hash_weights(outcome.network.state_dict())}
    assert tiny.load_cut(applied[0]).policy == mixed
    assert tiny.load_cut(applied[0]).kept == outcome.kept
    assert tiny.files(cache) == before


# ── shown ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("criterion", "criteria", "words"),
    [
        (L1, {}, "l1"),
        (L1, {"_2": FPGM}, "l1, fpgm on 1 group"),
        (L1, {"_0": L1, "_2": FPGM, "_3": FPGM}, "l1, fpgm on 2 groups"),
        (L1, {"_1": TAYLOR, "_2": FPGM}, "l1, taylor on 1 group, fpgm on 1 group"),
    ],
)
def test_a_trial_says_what_ranked_its_channels(inputs, criterion, criteria, words):
    record = TrialRecord(0, State.FINISHED, {"criterion": "l1"}, policy(inputs, criterion, **criteria))
    assert record.criterion == words
    assert writing._decided(record, inputs.experiment)["criterion"] == words


def test_the_front_names_all_criteria(inputs):
    history = []
    mixed = policy(inputs, L1, _1=FPGM)
    run_trial(mixed, inputs, lambda metrics, _: history.append(metrics))
    record = TrialRecord(0, State.FINISHED, {}, mixed, tuple(history))
    (row,) = table.front_table([record], inputs.baseline.to_dict(), ("accuracy", "macs"))
    assert row["criterion"] == "l1, fpgm on 1 group"
    assert replace(record, policy=policy(inputs, FPGM)).criterion == "fpgm"
