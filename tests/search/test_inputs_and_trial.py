import io
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch

from pruning import CriterionSpec, Policy, PolicyError, Recipe, TrainingError, count_cost, evaluate, hash_weights
from search import trial
from search.config import LatencySpec
from search.inputs import Baseline, network_with, ranking_key
from search.prepare import prepare
from search.trial import run_trial

RECIPE = {"epochs": 3, "batch_size": 50, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    search = {"criterion": ["l1", "random"]}
    return prepare(tiny.experiment(tmp_path_factory.mktemp("sweeps"), search=search))


def policy(inputs, widths=None, criterion="l1", seed=0, **recipe):
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        widths=widths or {"first": 5, "second": 9},
        criterion=CriterionSpec(name=criterion),
        recipe=Recipe(**RECIPE | recipe),
        seed=seed,
    )


class Reports:
    """Keeps what a trial reports, with each snapshot as it comes back from a file."""

    def __init__(self):
        self.metrics, self.snapshots = [], []

    def __call__(self, metrics, snapshot):
        file = io.BytesIO()
        torch.save(snapshot(), file)
        file.seek(0)
        self.metrics.append(metrics)
        self.snapshots.append(torch.load(file, weights_only=True))


def run(policy, inputs, resume=None):
    reports = Reports()
    return run_trial(policy, inputs, reports, resume), reports


def numbers(metrics):
    """Return what must be equal in equal trials: all but the clock."""
    return replace(metrics, seconds=0.0)


def same(one, other):
    return (
        numbers(one.metrics) == numbers(other.metrics)
        and one.kept == other.kept
        and hash_weights(one.network.state_dict()) == hash_weights(other.network.state_dict())
    )


class Watched:
    """A split that notes how its batches are asked for."""

    def __init__(self, split):
        self.split, self.asked = split, []

    def __len__(self):
        return len(self.split)

    def batches(self, batch_size, *, shuffle=False, augment=False, generator=None, device="cpu"):
        self.asked.append((shuffle, augment))
        return self.split.batches(batch_size, shuffle=shuffle, augment=augment, generator=generator, device=device)

    def subset(self, count, seed):
        return Watched(self.split.subset(count, seed))


class Closed:
    """A split that nobody may look at."""

    def __len__(self):
        raise AssertionError("closed")

    def batches(self, *_, **__):
        raise AssertionError("closed")

    subset = batches


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_copy_of_the_network_is_the_baseline_in_eval_mode(inputs):
    one, other = inputs.network(), inputs.network()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert (
        hash_weights(other.state_dict()) == hash_weights(inputs.weights) == hash_weights(inputs.network().state_dict())
    )
    assert not any(module.training for module in inputs.network().modules())
    found = evaluate(inputs.network(), inputs.data.val)
    assert (found.accuracy, found.loss) == (inputs.baseline.accuracy, inputs.baseline.loss)


def test_inputs_travel_without_the_network_that_they_keep(inputs):
    unused = len(pickle.dumps(replace(inputs)))
    images = torch.rand(4, 1, 8, 8)
    expected = inputs.network()(images)
    sent = pickle.dumps(inputs)
    assert len(sent) == unused
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.network()(images), expected)
    assert arrived.rankings.keys() == inputs.rankings.keys()


def test_a_network_is_built_without_touching_the_random_state(inputs):
    before = torch.get_rng_state()
    network_with(inputs.model, inputs.weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_ranking_is_known_by_its_criterion_and_the_options():
    specs = [CriterionSpec(name=name, options=options) for name in ("l1", "random") for options in ({}, {"seed": 1})]
    assert len({ranking_key(spec) for spec in specs}) == 4
    assert ranking_key(CriterionSpec(name="l1")) == ranking_key(CriterionSpec(name="l1", options={}))


def test_a_baseline_tells_its_latency_where_it_was_measured():
    assert Baseline(0.9, 0.1, 10, 5).to_dict() == {"accuracy": 0.9, "loss": 0.1, "macs": 10, "params": 5}
    assert Baseline(0.9, 0.1, 10, 5, 1.5).to_dict()["latency_ms"] == 1.5


# ── trials ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_reports_the_cut_and_every_epoch(inputs):
    outcome, reports = run(policy(inputs), inputs)
    assert [metrics.epoch for metrics in reports.metrics] == [0, 1, 2, 3]
    assert reports.metrics[-1] == outcome.metrics
    cost = inputs.cost.cost({"first": 5, "second": 9})
    assert {(metrics.macs, metrics.params) for metrics in reports.metrics} == {(cost.macs, cost.params)}
    assert count_cost(outcome.network, inputs.example) == cost
    assert [metrics.seconds for metrics in reports.metrics] == sorted(metrics.seconds for metrics in reports.metrics)
    found = evaluate(outcome.network, inputs.data.val)
    assert (found.accuracy, found.loss) == (outcome.metrics.accuracy, outcome.metrics.loss)
    assert {name: len(kept) for name, kept in outcome.kept.items()} == {"first": 5, "second": 9}
    assert outcome.metrics.loss < reports.metrics[0].loss


def test_without_epochs_a_trial_is_the_cut_alone(inputs):
    outcome, reports = run(policy(inputs, epochs=0), inputs)
    assert [metrics.epoch for metrics in reports.metrics] == [0]
    assert outcome.metrics == reports.metrics[0]


def test_equal_arguments_give_equal_trials_whatever_the_random_state(inputs):
    torch.manual_seed(1)
    one, reports = run(policy(inputs), inputs)
    torch.manual_seed(2)
    other, again = run(policy(inputs), pickle.loads(pickle.dumps(inputs)))
    assert same(one, other)
    assert list(map(numbers, reports.metrics)) == list(map(numbers, again.metrics))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"criterion": "random"},
        {"widths": {"first": 5, "second": 10}},
        {"learning_rate": 0.04},
        {"recalibration_images": 100},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_policy_gives_another_trial(inputs, change):
    plain = {"recalibration_images": 0}
    assert not same(run(policy(inputs, **plain), inputs)[0], run(policy(inputs, **plain | change), inputs)[0])


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("recipe", [{}, {"optimizer": "adamw"}, {"distillation": 0.5}], ids=["sgd", "adamw", "taught"])
def test_a_trial_goes_on_from_a_snapshot_as_if_it_had_never_stopped(inputs, recipe, after):
    whole, reports = run(policy(inputs, **recipe), inputs)
    resumed, rest = run(policy(inputs, **recipe), inputs, reports.snapshots[after])
    assert same(resumed, whole)
    assert list(map(numbers, rest.metrics)) == list(map(numbers, reports.metrics[after + 1 :]))
    assert all(metrics.seconds >= reports.metrics[after].seconds for metrics in rest.metrics)


def test_a_trial_leaves_its_inputs_and_the_random_state_as_found(inputs):
    def state():
        orders = [order.tolist() for ranking in inputs.rankings.values() for order in ranking.orders.values()]
        weights = [hash_weights(weights) for weights in (inputs.weights, inputs.network().state_dict())]
        return orders, weights, inputs.groups.widths, inputs.cost.full, torch.get_rng_state().tolist()

    before = state()
    run(policy(inputs, distillation=0.5), inputs)
    assert state() == before


def test_the_test_images_stay_closed_and_validation_images_are_only_looked_at(inputs):
    train, val = Watched(inputs.data.train), Watched(inputs.data.val)
    watched = replace(inputs, data=replace(inputs.data, train=train, val=val, test=Closed()))
    assert same(run(policy(inputs), watched)[0], run(policy(inputs), inputs)[0])
    assert val.asked == [(False, False)] * 4
    assert train.asked == [(True, True)] * 3  # recalibration draws a part of its own


def test_the_baseline_teaches_where_the_recipe_says_so(inputs):
    plain, taught = (run(policy(inputs, distillation=weight), inputs)[0] for weight in (0.0, 0.9))
    assert not same(plain, taught)


def test_latency_is_measured_where_it_is_an_objective(inputs):
    assert run(policy(inputs, epochs=0), inputs)[0].metrics.latency_ms is None
    asked = inputs.experiment.model_copy(update={"objectives": ("accuracy", "latency_ms")})
    outcome, reports = run(policy(inputs, epochs=1), replace(inputs, experiment=asked))
    assert outcome.metrics.latency_ms > 0
    assert len({metrics.latency_ms for metrics in reports.metrics}) == 1  # the network does not change its shape


def test_latency_is_the_baselines_times_the_ratio_of_both_measured_in_turns(inputs, monkeypatch):
    def compared(networks, images, repeats):
        assert [count_cost(network, inputs.example).params for network in networks.values()] == [
            inputs.cost.full.params,
            cut.metrics.params,
        ]
        assert (images.shape[0], repeats) == (3, 7)
        return {name: SimpleNamespace(median_ms=ms) for name, ms in zip(networks, (4.0, 1.0), strict=True)}

    cut = run(policy(inputs, epochs=0), inputs)[0]
    monkeypatch.setattr(trial, "compare_latency", compared)
    asked = inputs.experiment.model_copy(
        update={"objectives": ("accuracy", "latency_ms"), "latency": LatencySpec(batch=3, repeats=7)}
    )
    baseline = replace(inputs.baseline, latency_ms=8.0)
    outcome, _ = run(policy(inputs, epochs=0), replace(inputs, experiment=asked, baseline=baseline))
    assert outcome.metrics.latency_ms == 2.0


def test_whoever_runs_a_trial_ends_it_from_its_report(inputs):
    class EnoughError(Exception):
        pass

    seen = []

    def report(metrics, _):
        seen.append(metrics.epoch)
        if metrics.epoch == 1:
            raise EnoughError

    with pytest.raises(EnoughError):
        run_trial(policy(inputs), inputs, report)
    assert seen == [0, 1]


def test_training_that_breaks_down_is_told(inputs):
    with pytest.raises(TrainingError, match="expected a finite loss"):
        run(policy(inputs, learning_rate=1e30), inputs)


def test_a_policy_for_another_network_is_refused(inputs):
    with pytest.raises(PolicyError, match="no channel group 'third'"):
        run(policy(inputs, {"third": 3}), inputs)
    with pytest.raises(PolicyError, match="made for a network with signature"):
        run(policy(inputs).model_copy(update={"network": "0" * 16}), inputs)
