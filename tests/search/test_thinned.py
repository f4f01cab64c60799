"""An experiment chooses which grouped convolutions are thinned, and whatever takes its policies follows."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from pruning import Policy, PolicyError, load_exported, load_policy
from search import export
from search.apply import apply_policy
from search.config import load_experiment, parse_experiment
from search.diff import diff_policies
from search.driver import run_sweep
from search.errors import ExperimentError
from search.groups import network_of
from search.inputs import ranking_key
from search.latencies import Timed
from search.layouts import layout_for
from search.prepare import prepare, prepare_unranked, space_of
from search.rankings import derived_key
from search.starts import make_starts
from search.transfer import move_policy

THINNED = {"groups": "all", "thinned": "mid*"}
ALONE = {"groups": ["first"], "start": [], "surrogate": "none"}


def asked(folder, search=THINNED, **sections):
    return tiny.experiment(folder, model="tiny:grouped", latency={"repeats": 1}, search=search, **sections)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def sweep(storage, local_ray):
    search = {**THINNED, "trials": 3, "criterion": ["l1", "taylor"], "start": "uniform"}
    return run_sweep(asked(storage, search), live=False)


@pytest.fixture(scope="module")
def policy(sweep):
    return sweep.best(trial=0).policy


@pytest.fixture(scope="module")
def pruned(policy, sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("applied") / "pruned"
    apply_policy(policy, load_experiment(sweep.folder, ["search.thinned=[]"]), folder)  # the policy's choice counts
    return folder


# ── a sweep, and what follows it ─────────────────────────────────────────────────────────────────────────────────────


def test_every_policy_of_a_sweep_says_what_is_thinned(sweep):
    assert [record.state.value for record in sweep.records] == ["finished"] * 3
    assert {record.policy.thinned for record in sweep.records} == {("middle",)}
    assert {tuple(record.policy.widths) for record in sweep.records} == {("first", "middle", "last")}
    assert sweep.widths == {"first": 4, "middle": 2, "last": 40}


def test_a_policy_is_applied_saved_loaded_and_exported(policy, pruned, tmp_path):
    assert load_policy(pruned / "policy.json") == policy
    network = tiny.load_cut(pruned).model
    widths = policy.widths
    assert network.middle.groups == 16
    assert (network.middle.in_channels, network.middle.out_channels) == (16 * widths["first"], 16 * widths["middle"])
    report = export.export_pruned(pruned, tmp_path, formats=["pt2"], batches=[1], repeats=1, trusted=tiny.TRUSTED)
    images = torch.randn(4, *tiny.IMAGE_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(load_exported(report.exported[0].path)(images), network(images))


def test_a_policy_is_described_and_compared(policy, tmp_path, call):
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text(policy.to_json())
    experiment = asked(tmp_path, ALONE)
    whole = layout_for(policy.model, experiment)
    uncut = Policy(model=policy.model, network=whole.groups.signature, widths={"first": 16}, recipe=policy.recipe)
    other.write_text(uncut.to_json())
    file = tmp_path / "tiny.yaml"
    file.write_text(experiment.to_yaml())
    code, text, _ = call("describe", one, file)
    assert code == 0
    assert "thinned     middle\n" in text
    assert "thinned" not in call("describe", other, file)[1]
    code, text, _ = call("diff", one, other, file)
    assert code == 0
    assert "thinned" in text
    assert "middle → none" in text
    found = diff_policies(policy, layout_for(policy.model, experiment, thinned=policy.thinned), uncut, whole)
    sides = {group.name: (group.first, group.second) for group in found.groups}
    assert (sides["first"][0].width, sides["first"][1].width) == (4, 16)
    assert sides["middle"][1] is None


def test_a_policy_that_is_moved_thins_as_before(policy, tmp_path):
    model = policy.model.model_copy(update={"num_classes": 7})
    moved = move_policy(policy, model, asked(tmp_path), macs="60%", trusted=["tiny:grouped"])
    assert moved.transferred.policy.thinned == ("middle",)
    moved.transferred.policy.check(moved.target.groups)


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_by_default_nothing_is_thinned(tmp_path):
    experiment = asked(tmp_path, ALONE)
    assert experiment.search.thinned == ()
    assert layout_for(experiment.model, experiment).groups.thinned == ()


def test_a_choice_has_caches_of_its_own(tmp_path):
    """Also where all groups have the widths that they have otherwise."""
    model = {"name": "tiny:grouped", "options": {"groups": 8, "width": 8}}
    weights = tiny.untrained(tmp_path, model)
    whole, thinned = (
        prepare(tiny.experiment(tmp_path, model=model, weights=weights, search={**ALONE, "thinned": names}))
        for names in ([], ["middle"])
    )
    assert whole.groups.widths == thinned.groups.widths == {"first": 8, "last": 40}
    (criterion,) = whole.experiment.search.criterion
    assert len({derived_key(inputs, criterion, None, []) for inputs in (whole, thinned)}) == 2
    assert len({timed(inputs).path for inputs in (whole, thinned)}) == 2
    of_whole, of_thinned = (inputs.rankings[ranking_key(criterion)].keep("first", 4) for inputs in (whole, thinned))
    filters = whole.network().first.weight.detach().double().abs().sum(dim=(1, 2, 3)).reshape(8, 8)
    assert set(of_whole) == set(filters.mean(dim=1).topk(4).indices.tolist())  # 8 filters in a row
    assert set(of_thinned) == set(filters.mean(dim=0).topk(4).indices.tolist())  # one of each group


def timed(inputs):
    parts = inputs.network(), inputs.groups, inputs.searched, inputs.cost, inputs.example, inputs.device
    return Timed(inputs.experiment, *parts)


def test_widths_of_a_choice_are_rounded_up(policy):
    widths = {"first": 3, "middle": 1, "last": 9}
    cut = SimpleNamespace(policy=policy.model_copy(update={"widths": widths}), image_shape=tiny.IMAGE_SHAPE)
    network = export._rounded(cut)
    assert [layer.out_channels for layer in (network.first, network.middle, network.last)] == [48, 16, 16]


def test_policies_by_rules_say_what_is_thinned(policy, storage):
    space = space_of(prepare(asked(storage)))
    space.policy_of(policy.widths, policy.criterion).check(space.all_groups)


def test_the_command_shows_the_choice(call, tmp_path):
    code, text, _ = call("groups", "tiny:grouped", "--input-shape", "1x8x8", "--thinned", "mid*")
    assert code == 0
    assert "thinned  1 of 1 grouped convolutions: " in text
    assert [line.split()[:3] for line in text.splitlines()[1:4]] == [
        ["first", "4", "16"],
        ["middle", "2", "16"],
        ["last", "40", "1"],
    ]
    file = tmp_path / "tiny.yaml"
    file.write_text(asked(tmp_path).to_yaml())
    for shape in (None, "1x16x16"):
        assert network_of(str(file), None, shape).groups.thinned == ("middle",)
    assert "thinned  0 of 1 grouped" in call("groups", "tiny:grouped", "--input-shape", "1x8x8")[1]
    assert "thinned" not in call("groups", "resnet20")[1]


def test_bench_and_the_pictures_cut_what_the_experiment_says(call, tmp_path, storage):
    file = tmp_path / "tiny.yaml"
    file.write_text(asked(storage).to_yaml())
    code, text, _ = call("bench", file, "--widths", "4")
    assert (code, "3 of 3 channel groups are cut" in text) == (0, True)
    code, _, complaint = call("show-channels", file, "--group", "middle", "-o", tmp_path / "maps.png")
    assert (code, complaint) == (0, "")
    assert (tmp_path / "maps.png").stat().st_size


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["run", "rank", "bench"])
def test_a_pattern_that_fits_nothing_is_told_before_anything_is_trained(call, tmp_path, command):
    file = tmp_path / "tiny.yaml"
    file.write_text(asked(tmp_path / "sweeps", {"thinned": "midle", "criterion": ["l1", "l2"]}).to_yaml())
    code, _, complaint = call(command, file)
    assert (code, complaint.count("\n")) == (2, 1)
    assert complaint == "error: unknown grouped convolution 'midle'; did you mean 'middle'?\n"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_patterns_of_a_network_by_name_are_none_of_an_experiment(refused, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(asked(tmp_path).to_yaml())
    complaint = refused("groups", file, "--thinned", "middle")
    assert "--thinned: expected a network by name with it" in complaint
    assert "--set search.thinned=PATTERN" in complaint
    assert "there are none" in refused("groups", "resnet20", "--thinned", "*")


def test_a_start_with_another_choice_is_refused(storage, tmp_path, policy):
    path = tmp_path / "policy.json"
    path.write_text(policy.to_json())
    inputs = prepare(asked(storage, {**ALONE, "start": [str(path)]}))
    with pytest.raises(ExperimentError, match=r"^search.start: policy.json: policy.thinned: .* middle, got none$"):
        make_starts(inputs.experiment, space_of(inputs))


def test_a_trial_refuses_a_policy_that_does_not_say(policy, storage):
    inputs = prepare_unranked(asked(storage))
    with pytest.raises(PolicyError, match=r"^policy.thinned: expected groups found with thinned none, got middle$"):
        policy.model_copy(update={"thinned": ()}).check(inputs.groups)
    policy.check(inputs.groups)


@pytest.mark.parametrize("value", [None, 3, [3], {"layer": 1}])
def test_only_patterns_are_taken(value):
    with pytest.raises(ExperimentError, match=r"^search\.thinned"):
        parse_experiment({"name": "x", "model": "resnet20", "search": {"thinned": value}})
