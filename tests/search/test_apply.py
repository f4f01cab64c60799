from dataclasses import replace

import pytest
import tiny
import torch

from pruning import (
    CriterionSpec,
    ModelSpec,
    Policy,
    PolicyError,
    Recipe,
    UnknownNameError,
    count_cost,
    count_memory,
    evaluate,
    hash_weights,
)
from search import apply
from search.apply import apply_policy
from search.errors import SweepError
from search.prepare import load_baseline, prepare
from search.trial import run_trial


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    prepare(tiny.experiment(folder))
    return folder


@pytest.fixture(scope="module")
def policy(storage):
    inputs = prepare(tiny.experiment(storage))
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        widths={"first": 5, "second": 9},
        criterion=CriterionSpec(name="taylor"),
        recipe=Recipe(epochs=2, batch_size=50, learning_rate=0.05),
        seed=3,
    )


def test_a_policy_applied_twice_gives_equal_weights(storage, policy, tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    one, other = (apply_policy(policy, tiny.experiment(storage), folder) for folder in folders)
    hashes = [hash_weights(tiny.load_cut(folder).model.state_dict()) for folder in folders]
    assert hashes[0] == hashes[1]
    assert [applied.pruned.accuracy for applied in (one, other)] == [one.pruned.accuracy] * 2
    assert one.folder == folders[0]


def test_the_folder_holds_the_network_that_was_tested(storage, policy, tmp_path):
    lines = []
    applied = apply_policy(policy, tiny.experiment(storage), tmp_path / "pruned", lines.append)
    loaded, data = tiny.load_cut(tmp_path / "pruned"), prepare(tiny.experiment(storage)).data
    assert loaded.policy == policy
    assert {name: len(kept) for name, kept in loaded.kept.items()} == policy.widths
    assert evaluate(loaded.model, data.test).accuracy == applied.pruned.accuracy
    cost = count_cost(loaded.model, torch.zeros(1, *data.image_shape))
    assert (cost.macs, cost.params) == (applied.pruned.macs, applied.pruned.params)
    assert count_memory(loaded.model, torch.zeros(1, *data.image_shape)) == applied.pruned.memory
    assert applied.pruned.latency_ms > 0
    assert [line.partition(":")[0].strip() for line in lines[-3:]] == ["cut and recalibrated", "epoch 1/2", "epoch 2/2"]


def test_the_baseline_is_tested_uncut(storage, policy, tmp_path):
    applied = apply_policy(policy, tiny.experiment(storage), tmp_path / "pruned")
    subject = load_baseline(tiny.experiment(storage))
    cost = count_cost(subject.network, subject.example)
    assert applied.baseline.accuracy == evaluate(subject.network, subject.data.test).accuracy
    assert (applied.baseline.macs, applied.baseline.params) == (cost.macs, cost.params)
    assert applied.baseline.memory == count_memory(subject.network, subject.example) != applied.pruned.memory


def test_test_images_are_opened_once_for_each_network_at_the_end(storage, policy, tmp_path, monkeypatch):
    opened = []

    class Watched:
        def __init__(self, split):
            self.split = split

        def __len__(self):
            return len(self.split)

        def batches(self, *args, **options):
            opened.append((tmp_path / "pruned" / "weights.safetensors").exists())
            return self.split.batches(*args, **options)

    def watched(*args):
        inputs = prepare(*args)
        return replace(inputs, data=replace(inputs.data, test=Watched(inputs.data.test)))

    monkeypatch.setattr(apply, "prepare", watched)
    apply_policy(policy, tiny.experiment(storage), tmp_path / "pruned")
    assert opened == [True, True]


def test_a_policy_is_applied_with_as_many_threads_as_the_trials_had(storage, policy, tmp_path, monkeypatch):
    seen = []

    def watched(*args):
        seen.append(torch.get_num_threads())
        return run_trial(*args)

    monkeypatch.setattr(apply, "run_trial", watched)
    before = torch.get_num_threads()
    asked = tiny.experiment(storage, resources={"threads": before + 1})
    apply_policy(policy, asked, tmp_path / "pruned")
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"model": ModelSpec(name="resnet20")}, PolicyError, "policy.model: expected name='tiny:network' .*'resnet20'"),
        ({"network": "0" * 16}, PolicyError, "made for a network with signature 0000000000000000"),
        ({"widths": {"frist": 5}}, PolicyError, "no channel group 'frist'.*did you mean 'first'"),
        ({"widths": {"first": 9}}, PolicyError, r"widths.first: expected 1 to 8 channels, got 9"),
        ({"widths": {}}, PolicyError, r"policy.widths: expected at least one"),
        ({"criterion": CriterionSpec(name="tailor")}, UnknownNameError, "did you mean 'taylor'"),
        ({"criteria": {"first": CriterionSpec(name="tailor")}}, UnknownNameError, "did you mean 'taylor'"),
        ({"criteria": {"frist": CriterionSpec(name="l1")}}, PolicyError, "got 'frist'; did you mean 'first'"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_any_work(tmp_path, policy, change, error, reason):
    with pytest.raises(error, match=reason):
        apply_policy(policy.model_copy(update=change), tiny.experiment(tmp_path / "sweeps"), tmp_path / "pruned")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused_before_any_work(tmp_path, policy):
    (tmp_path / "pruned").mkdir()
    with pytest.raises(SweepError, match="pruned: exists; name another folder with --output"):
        apply_policy(policy, tiny.experiment(tmp_path / "sweeps"), tmp_path / "pruned")
    assert not (tmp_path / "sweeps").exists()
