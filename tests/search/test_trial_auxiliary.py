"""A trial with auxiliary losses, with fitted weights, and from scratch."""

from dataclasses import replace

import pytest
import tiny
import torch

from pruning import CRITERIA, AuxiliaryPlacement, CriterionSpec, Policy, hash_weights
from search import rankings
from search.prepare import prepare
from search.rankings import ranking_for
from search.trial import run_trial

AT_ONE = AuxiliaryPlacement(kind="explicit", positions=(2,), weight=1.0)


class EnoughError(Exception):
    pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    search = {"groups": "all", "ranking_images": 60}
    auxiliary = {"heads": {"epochs": 1, "learning_rate": 0.1}}
    folder = tmp_path_factory.mktemp("shared")
    baseline = {"epochs": 3, "learning_rate": 0.1, "batch_size": 25}
    return prepare(tiny.experiment(folder, model="tiny:blocks", search=search, auxiliary=auxiliary, baseline=baseline))


def policy(inputs, *, widths=None, recipe=None, criterion="l1", **sections):
    inner = {f"blocks.{block}.conv1": 3 for block in range(4)}
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        widths=inner if widths is None else widths,
        criterion=CriterionSpec(name=criterion),
        recipe=inputs.experiment.recipe.model_copy(update=recipe or {}),
        **sections,
    )


def silent(*_):
    pass


def weights(policy, inputs):
    return hash_weights(run_trial(policy, inputs, silent).network.state_dict())


def test_auxiliary_losses_change_the_training_unless_the_recipe_leaves_them_out(inputs):
    plain = weights(policy(inputs), inputs)
    by_recipe = {
        kind: weights(policy(inputs, auxiliary=AT_ONE, recipe={"auxiliary": kind}), inputs)
        for kind in ("joint", "sequential", "none")
    }
    assert by_recipe["none"] == plain
    assert len({plain, by_recipe["joint"], by_recipe["sequential"]}) == 3


@pytest.mark.parametrize("kind", ["joint", "sequential"])
def test_a_trial_that_is_resumed_ends_like_one_that_was_not(inputs, kind):
    asked = policy(inputs, auxiliary=AT_ONE, recipe={"auxiliary": kind, "epochs": 3})
    snapshots = []

    def until_the_second(metrics, snapshot):
        if metrics.epoch == 2:
            snapshots.append(snapshot())
            raise EnoughError

    with pytest.raises(EnoughError):
        run_trial(asked, inputs, until_the_second)
    resumed = run_trial(asked, inputs, silent, snapshots[0])
    assert hash_weights(resumed.network.state_dict()) == weights(asked, inputs)


def test_the_cut_network_holds_nothing_of_the_heads(inputs):
    outcome = run_trial(policy(inputs, auxiliary=AT_ONE), inputs, silent)
    assert outcome.network.state_dict().keys() == inputs.weights.keys()
    assert outcome.metrics.params < inputs.baseline.params


def test_heads_on_channels_that_were_cut_are_made_anew(inputs):
    asked = policy(inputs, widths={"stem": 4}, auxiliary=AT_ONE)
    outcome = run_trial(asked, inputs, silent)
    assert len(outcome.kept["stem"]) == 4
    assert outcome.network.blocks[1].conv2.out_channels == 4
    assert weights(asked, inputs) == hash_weights(outcome.network.state_dict())


def test_the_cut_network_has_the_weights_that_the_ranking_fitted(inputs):
    ranking = CRITERIA.build("dcp", rate=0.5).rank(
        inputs.network(), inputs.searched, list(inputs.data.train.subset(60, 0).batches(20))
    )
    asked = policy(inputs, recipe={"epochs": 0, "recalibration_images": 0}, criterion="dcp")
    known = replace(inputs, rankings={asked.criterion.model_dump_json(): ranking})
    outcome = run_trial(asked, known, silent)
    for block in range(4):
        group = f"blocks.{block}.conv1"
        assert ranking.fitted_widths[group] == 3
        fitted = ranking.fitted[group][f"blocks.{block}.conv2.weight"][:, list(outcome.kept[group])]
        assert torch.equal(outcome.network.blocks[block].conv2.weight, fitted)
        assert not torch.equal(fitted, inputs.weights[f"blocks.{block}.conv2.weight"][:, list(outcome.kept[group])])


def test_from_scratch_nothing_of_the_baseline_is_left(inputs):
    asked = policy(inputs, recipe={"from_scratch": True, "epochs": 0, "recalibration_images": 0})
    outcome = run_trial(asked, inputs, silent)
    kept = run_trial(policy(inputs, recipe={"epochs": 0, "recalibration_images": 0}), inputs, silent)
    for name, value in outcome.network.named_parameters():
        if name.endswith("conv1.weight"):
            assert not torch.isclose(value, kept.network.get_parameter(name)).any()
    assert outcome.metrics.macs == kept.metrics.macs
    assert weights(asked, inputs) == hash_weights(outcome.network.state_dict())


def test_from_scratch_heads_are_new_too_and_nothing_is_trained_for_them(inputs):
    place = AuxiliaryPlacement(kind="explicit", positions=(3,), weight=1.0)
    scratch = {"from_scratch": True, "epochs": 0}
    heads = inputs.experiment.storage / "cache" / "auxiliary"
    before = set(heads.glob("*")) if heads.exists() else set()
    first = weights(policy(inputs, recipe=scratch | {"recalibration_images": 20}, auxiliary=place), inputs)
    assert first == weights(policy(inputs, recipe=scratch | {"recalibration_images": 0}), inputs)
    joint, none = (
        weights(policy(inputs, recipe=scratch | {"epochs": 1, "auxiliary": kind}, auxiliary=place), inputs)
        for kind in ("joint", "none")
    )
    assert joint != none
    assert (set(heads.glob("*")) if heads.exists() else set()) == before


def test_a_trial_asks_for_a_ranking_that_nobody_made_before(inputs, monkeypatch):
    asked = policy(inputs, criterion="ccp", auxiliary=AT_ONE)
    before = set(inputs.rankings)
    calls = []
    monkeypatch.setattr(rankings, "ranking_for", lambda *args: calls.append(args[1:]) or ranking_for(*args))
    run_trial(asked, inputs, silent)
    assert calls == [(asked.criterion, AT_ONE)]
    assert set(inputs.rankings) == before
    found = (inputs.experiment.storage / "cache" / "rankings").glob("ccp-*.safetensors")
    assert len(list(found)) == 1
