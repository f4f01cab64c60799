"""A policy is applied again: to the same weights, to others, by another recipe; what fails leaves nothing behind."""

import json
import shutil

import pytest
import tiny
import torch

from pruning import (
    CheckpointError,
    CriterionSpec,
    ModelSpec,
    Policy,
    PolicyError,
    Recipe,
    checkpoint,
    layout_of,
    load_policy,
    load_weights,
)
from pruning.checkpoint import read_state_dict
from search import apply
from search.apply import apply_policy, with_recipe
from search.prepare import prepare
from search.trial import run_trial
from search.units import percent

RECIPE = Recipe(epochs=2, batch_size=50, learning_rate=0.05)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    prepare(tiny.experiment(folder))
    return folder


@pytest.fixture(scope="module")
def policy(storage):
    inputs = prepare(tiny.experiment(storage))
    return Policy(model=inputs.model, network=inputs.groups.signature, widths={"first": 5, "second": 9}, recipe=RECIPE)


@pytest.fixture
def experiment(storage, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny.experiment(storage, latency={"repeats": 2}).to_yaml())
    return path


@pytest.fixture
def written(policy, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(policy.to_json())
    return path


def everything(folder):
    """Every file and folder below, hidden ones, too."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


# ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resnet_cut_twice_from_one_seed_is_equal_bit_for_bit(tmp_path):
    model = ModelSpec(name="resnet20", options={"in_channels": 1})
    weights = tiny.untrained(tmp_path, model.model_dump())
    data = {"name": "digits", "options": {"size": 16, "channels": 1, "train_images": 150}}
    asked = tiny.experiment(tmp_path, model=model.model_dump(), weights=weights, data=data, latency={"repeats": 1})
    layout = layout_of(model)
    policy = Policy(
        model=model,
        network=layout.groups.signature,
        widths={name: max(1, group.width // 2) for name, group in layout.groups.items()},
        criterion=CriterionSpec(name="taylor"),
        criteria={"layer2.0.conv1": CriterionSpec(name="fpgm")},
        recipe=RECIPE,
        seed=3,
    )
    folders = [tmp_path / "one", tmp_path / "other", tmp_path / "seeded"]
    for folder, seed in zip(folders, (3, 3, 4), strict=True):
        torch.manual_seed(len(folder.name))  # the caller's random numbers do not matter
        apply_policy(policy.model_copy(update={"seed": seed}), asked, folder)
    one, other, seeded = (tiny.load_cut(folder) for folder in folders)
    states = [network.model.state_dict() for network in (one, other, seeded)]
    assert one.kept == other.kept
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["linear.weight"], states[2]["linear.weight"])


def test_a_policy_is_applied_to_other_weights_of_its_network(call, experiment, written, tmp_path):
    other = tiny.untrained(tmp_path, {"name": "tiny:network"})
    options = ("--recipe", "epochs=0", "--recipe", "recalibration_images=0", "-o", tmp_path / "pruned")
    code, text, complaint = call("apply", written, experiment, "--set", f"weights={other}", *options)
    assert (code, complaint) == (0, "")
    pruned, full = tiny.load_cut(tmp_path / "pruned"), read_state_dict(other)
    kept = list(pruned.kept["first"])
    assert torch.equal(pruned.model.state_dict()["first.weight"], full["first.weight"][kept])
    assert torch.equal(
        pruned.model.state_dict()["classifier.weight"], full["classifier.weight"][:, list(pruned.kept["second"])]
    )
    network = tiny.network()
    load_weights(network, other)
    assert percent(apply.evaluate(network, prepare(tiny.experiment(tmp_path)).data.test).accuracy, 2) in text


def test_a_transferred_policy_is_applied_to_the_other_network(call, experiment, written, storage, tmp_path):
    wide = tmp_path / "wide.yaml"
    model = {"name": "tiny:network", "options": {"widths": [16, 20]}}
    weights = str(tiny.untrained(tmp_path, model))
    wide.write_text(tiny.experiment(storage, model=model, weights=weights).to_yaml())
    assert "prunesearch transfer" in call("apply", written, wide, "-o", tmp_path / "pruned")[2]
    assert call("transfer", written, wide, "-o", tmp_path / "moved.json")[0] == 0
    options = ("--recipe", "epochs=0", "-o", tmp_path / "pruned")
    assert call("apply", tmp_path / "moved.json", wide, *options)[0] == 0
    cut = tiny.load_cut(tmp_path / "pruned").model
    assert (cut.first.out_channels, cut.second.out_channels) == (10, 11)  # 5 of 8 and 9 of 16


def test_weights_of_another_network_are_one_line(refused, experiment, written, tmp_path):
    other = tiny.untrained(tmp_path, {"name": "tiny:network", "options": {"widths": [8, 20]}})
    complaint = refused("apply", written, experiment, "--set", f"weights={other}", "-o", tmp_path / "pruned")
    assert f"checkpoint {other}: does not fit Network" in complaint


# ── another recipe ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_recipe_is_told_and_saved(call, experiment, written, policy, tmp_path):
    changes = ("--recipe", "epochs=1", "--recipe", "learning_rate=2e-2", "--recipe", "batch_size=50")
    code, text, complaint = call("apply", written, experiment, *changes, "-o", tmp_path / "pruned")
    assert (code, complaint) == (0, "")
    saved = load_policy(tmp_path / "pruned" / "policy.json")
    assert saved == policy.model_copy(update={"recipe": Recipe(epochs=1, batch_size=50, learning_rate=0.02)})
    place = tmp_path / "pruned" / "policy.json"
    assert text.splitlines()[:2] == [
        f"recipe.epochs: 2 in {written}, 1 here and in {place}",
        f"recipe.learning_rate: 0.05 in {written}, 0.02 here and in {place}",
    ]
    assert "epoch 1/1" in text
    assert load_policy(written) == policy


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--recipe", "epoch=3", "--recipe epoch: unknown key; did you mean 'epochs'?"),
        ("--recipe", "epochs=-1", "--recipe epochs: expected greater than or equal to 0, got -1"),
        ("--recipe", "epochs", "--recipe: expected name=value, got 'epochs'"),
        ("--recipe", "epochs=[", "--recipe epochs=[: '[' is not YAML"),
        ("--set", "recipe.epochs=3", "the policy's recipe counts; change it with --recipe epochs=3"),
        ("--set", "recipe={epochs: 3}", "the policy's recipe counts; change it with --recipe epochs=3"),
        (
            "--set",
            "model.num_classes=7",
            "policy.model: expected 7 classes as in the experiment, got 10; `prunesearch t",
        ),
        ("--set", "model=tiny:blocks", "`prunesearch transfer` moves a policy to another network"),
    ],
)
def test_a_setting_that_apply_does_not_follow_is_one_line(
    refused, experiment, written, tmp_path, option, value, reason
):
    assert reason in refused("apply", written, experiment, option, value, "-o", tmp_path / "pruned")


def test_without_changes_a_recipe_stays():
    policy = Policy(model=ModelSpec(name="a"), network="b", widths={"c": 1}, recipe=RECIPE)
    assert with_recipe(policy, ()) == policy
    changed = with_recipe(policy, ["milestones=[0.25]", "clip_norm=null", "optimizer=adamw"])
    assert changed.recipe == RECIPE.model_copy(update={"milestones": (0.25,), "optimizer": "adamw"})


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "policy.json: policy: format: expected 1, got 2; written by another version"),
        ({"format": "1"}, "format: expected 1, got 1; written by another version"),
        ({"widths": {"first": 0}}, "widths.first: expected greater than or equal to 1, got 0"),
        ({"widths": {"first": -3}}, "widths.first: expected greater than or equal to 1, got -3"),
        ({"widths": {"first": 9}}, "widths.first: expected 1 to 8 channels, got 9"),
        ({"widths": {"first": 2.5}}, "widths.first: expected a valid integer, got 2.5"),
        ({"widths": {"first": 5.0}}, "widths.first: expected a valid integer, got 5.0"),
        ({"widths": {"first": "5"}}, "widths.first: expected a valid integer, got '5'"),
        ({"widths": {"first": True}}, "widths.first: expected a valid integer, got True"),
        ({"widths": {"thrid": 3}}, "no channel group 'thrid' in this network"),
    ],
)
def test_an_edited_policy_is_one_line(refused, experiment, written, tmp_path, change, reason):
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    assert reason in refused("apply", written, experiment, "-o", tmp_path / "pruned")


def test_a_place_without_room_for_a_folder_is_refused_before_any_work(refused, experiment, written, tmp_path):
    (tmp_path / "file").touch()
    complaint = refused("apply", written, experiment, "-o", tmp_path / "file" / "pruned")
    assert f"but {tmp_path / 'file'} cannot hold one" in complaint


@pytest.mark.parametrize("moment", ["training", "writing"])
def test_ctrl_c_leaves_no_folder_behind(call, experiment, written, tmp_path, monkeypatch, moment):
    def trained(policy, inputs, report):
        def interrupted(metrics, _):
            if metrics.epoch == 1:
                raise KeyboardInterrupt

        return run_trial(policy, inputs, interrupted)

    def torn(tensors, path, **_):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*((apply, "run_trial", trained) if moment == "training" else (checkpoint, "save_file", torn)))
        code, _, complaint = call("apply", written, experiment, "-o", tmp_path / "pruned")
    assert (code, complaint) == (130, "interrupted\n")
    assert everything(tmp_path) == before
    assert call("apply", written, experiment, "-o", tmp_path / "pruned")[0] == 0


def test_the_folder_appears_whole_and_nothing_else_beside_it(call, experiment, written, tmp_path):
    before = everything(tmp_path)
    assert call("apply", written, experiment, "-o", tmp_path / "pruned")[0] == 0
    added = [path.name for path in everything(tmp_path) if path not in before]
    assert added == ["pruned", "kept.json", "policy.json", "weights.safetensors"]


def test_kept_channels_of_another_network_are_one_line(storage, policy, tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, first in zip(folders, (5, 4), strict=True):
        changed = policy.model_copy(update={"widths": {"first": first, "second": 9}})
        apply_policy(changed, tiny.experiment(storage, latency={"repeats": 1}), folder)
    shutil.copy(folders[1] / "kept.json", folders[0])
    with pytest.raises(CheckpointError, match=r"one, kept\.first: expected 5 channels, got 4$"):
        tiny.load_cut(folders[0])
    kept = json.loads((folders[0] / "kept.json").read_text())
    kept["kept"] = {"layer1.0.conv1": [0, 1, 2, 3, 4], "second": kept["kept"]["second"]}
    (folders[0] / "kept.json").write_text(json.dumps(kept))
    with pytest.raises((CheckpointError, PolicyError), match=r"kept\.(first|layer1\.0\.conv1): expected") as caught:
        tiny.load_cut(folders[0])
    assert "\n" not in str(caught.value)
