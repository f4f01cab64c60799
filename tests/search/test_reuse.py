"""Policies are described, compared and moved: as data, and on the command line."""

from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch

from pruning import (
    CRITERIA,
    AuxiliaryPlacement,
    CostModel,
    CriterionSpec,
    ModelSpec,
    Policy,
    PolicyError,
    Recipe,
    build_model,
    count_cost,
    count_memory,
    find_groups,
    layout_of,
    load_policy,
    prune,
)
from search import apply
from search.cli.policies import _say_tested
from search.describe import describe_policy, description_lines, description_table
from search.diff import GroupSide, diff_policies
from search.errors import SearchError
from search.layouts import layout_for
from search.prepare import build_subject
from search.transfer import model_like, move_policy

RESNET = ModelSpec(name="resnet20")
CUT = {"layer1.0.conv1": 4, "layer2.1.conv1": 32, "layer3.2.conv1": 20, "layer3.0.conv2": 16}


@cache
def laid_out(name="resnet20"):
    return layout_of(ModelSpec(name=name))


def resnet_policy(widths=None, name="resnet20", **more):
    layout = laid_out(name)
    return Policy(model=layout.model, network=layout.groups.signature, widths=CUT if widths is None else widths, **more)


@pytest.fixture
def written(tmp_path):
    """Writes policies into files and returns these."""

    def write(*policies):
        files = [tmp_path / f"{'abcd'[number]}.json" for number in range(len(policies))]
        for file, policy in zip(files, policies, strict=True):
            file.write_text(policy.to_json())
        return files if len(files) > 1 else files[0]

    return write


def really_cut(widths):
    """What the network costs after surgery."""
    return count_cost(*after_surgery(widths))


def after_surgery(widths):
    network, example = build_model(RESNET), torch.zeros(1, 3, 32, 32)
    ranking = CRITERIA.build("l1").rank(network, laid_out().groups)
    prune(network, widths, ranking, groups=laid_out().groups, example_input=example)
    return network, example


def long_lines(text):
    return [line for line in text.splitlines() if len(line) > 100]


# ── describe ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_description_says_what_really_cutting_would_save():
    description = describe_policy(resnet_policy(), laid_out())
    full = really_cut({})
    assert (description.full, description.cut) == (full, really_cut(CUT))
    assert description.full_memory == count_memory(*after_surgery({}))
    assert description.cut_memory == count_memory(*after_surgery(CUT)) != description.full_memory
    assert [cut.name for cut in description.cuts] == sorted(CUT, key=list(laid_out().groups).index)
    for cut in description.cuts:
        alone = really_cut({cut.name: CUT[cut.name]})
        assert (cut.saved.macs, cut.saved.params) == (full.macs - alone.macs, full.params - alone.params)
        assert (cut.kept, cut.width) == (CUT[cut.name], laid_out().groups[cut.name].width)
    assert description.whole == 12 - len(CUT)


class Choosy(torch.nn.Module):
    """Does something else with a single image."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.embed(x)
        return self.read(x.abs() if len(x) > 1 else x.relu())


def test_memory_that_cannot_be_told_is_no_reason_to_fail(tmp_path, capsys):
    network, example = Choosy(), torch.zeros(2, 3, 4, 4)
    groups = find_groups(network, example)
    odd = replace(laid_out(), groups=groups, cost=CostModel(network, groups, example))
    policy = Policy(model=odd.model, network=groups.signature, widths={"embed": 4})
    description = describe_policy(policy, odd)
    assert (description.full_memory, description.cut_memory) == (None, None)
    lines = description_lines(description)
    assert lines["memory"].startswith("cannot be told")
    assert not {"weights", "peak"} & lines.keys()

    full, cut = (apply.Tested(0.5, cost.macs, cost.params, None, 1.0) for cost in (description.full, description.cut))
    _say_tested(apply.Applied(full, cut, tmp_path))
    rows = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == ["accuracy", "MACs", "parameters", "latency (ms)"]


def test_criteria_are_shown_where_they_differ():
    fpgm = {"layer1.0.conv1": CriterionSpec(name="fpgm")}
    plain, mixed = (describe_policy(resnet_policy(criteria=criteria), laid_out()) for criteria in ({}, fpgm))
    assert "criterion" not in description_table(plain)[0]
    headers, rows = description_table(mixed)
    assert [row[headers.index("criterion")] for row in rows] == ["fpgm", "l1", "l1", "l1"]


def test_a_policy_is_described_without_weights_or_images(call, written):
    auxiliary = AuxiliaryPlacement(kind="explicit", positions=(3, "layer2.1"), weight=0.5)
    recipe = Recipe(epochs=4, learning_rate=0.02, label_smoothing=0.1)
    policy = resnet_policy(auxiliary=auxiliary, recipe=recipe, seed=7)
    code, text, complaint = call("describe", written(policy))
    assert (code, complaint) == (0, "")
    cost, memory = really_cut(CUT), count_memory(*after_surgery(CUT))
    told = dict(line.split("  ", 1) for line in text.splitlines()[len(CUT) + 2 :])
    told = {name: value.strip() for name, value in told.items()}
    assert text.splitlines()[1].split() == ["layer1.0.conv1", "4/16", "25.0", "%", "8.7", "%", "3,480"]
    assert told["policy"] == f"{policy.fingerprint} for resnet20, 10 classes"
    assert told["MACs"].startswith(f"40,551,040 → {cost.macs:,} (")
    assert told["parameters"].startswith(f"269,722 → {cost.params:,} (")
    assert told["weights"].startswith(f"1,084,544 → {memory.weight_bytes:,} (")
    assert f" → {memory.peak_activation_bytes:,} (" in told["peak"]
    assert told["auxiliary"] == "3, layer2.1; dcp heads, weight 0.5"
    assert told["recipe"] == "4 epochs of sgd, learning rate 0.02 cosine, batches of 128, label_smoothing 0.1"
    assert (told["criterion"], told["seed"]) == ("l1", "7")


def test_an_experiment_tells_the_size_of_the_images(call, file, written, refused, tmp_path):
    experiment = tiny.experiment(tmp_path / "sweeps")
    subject = build_subject(experiment)
    layout = layout_for(experiment.model, experiment)
    assert layout.cost.full == count_cost(subject.network, subject.example)
    policy = Policy(model=experiment.model, network=layout.groups.signature, widths={"first": 3})
    path = written(policy)
    code, text, _ = call("describe", path, file())
    assert code == 0
    assert f"{layout.cost.full.macs:,} → {layout.cost.cost({'first': 3}).macs:,}" in text
    assert f"--trust {policy.model.name}" in refused("describe", path)
    complaint = refused("describe", path, *tiny.TRUST)
    assert "expected an attribute input_shape" in complaint
    assert "or name an experiment, whose images tell it" in complaint
    assert "--set seed=1: expected an experiment that it changes" in refused("describe", path, "--set", "seed=1")
    assert "prunesearch transfer" in refused("describe", written(resnet_policy()), file())


def test_a_policy_that_was_edited_for_no_network_is_one_line(refused, written):
    foreign = resnet_policy().model_copy(update={"model": ModelSpec(name="resnet56")})
    assert "made for a network with signature" in refused("describe", written(foreign))


@pytest.mark.parametrize("name", ["resnet110", "regnet_y_400mf"])
def test_what_is_printed_fits_into_a_terminal(call, written, tmp_path, name):
    layout = laid_out(name)
    long = CriterionSpec(name="ccp", options={"joint": True, "label_smoothing": 0.123456789})
    halves = {group: max(1, width // 2) for group, width in layout.groups.widths.items()}
    some = dict.fromkeys(list(halves)[::2], long)
    one, other = written(
        resnet_policy(halves, name, criteria=some),
        resnet_policy(halves | dict.fromkeys(list(halves)[::3], 1), name, criterion=long),
    )
    for command in (("describe", one), ("diff", one, other), ("transfer", one, "--model", name)):
        output = () if command[0] != "transfer" else ("-o", tmp_path / "moved.json")
        code, text, complaint = call(*command, *output)
        assert (code, complaint) == (0, "")
        assert len(text.splitlines()) > len(halves) // 3
        assert not [line for line in long_lines(text) if str(tmp_path) not in line]


# ── diff ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def difference(one, other):
    return diff_policies(one, laid_out(one.model.name), other, laid_out(other.model.name))


def test_a_difference_has_the_groups_and_values_that_differ_and_no_others():
    one = resnet_policy(recipe=Recipe(epochs=4))
    other = resnet_policy({**CUT, "layer1.0.conv1": 5, "conv1": 8}, recipe=Recipe(epochs=3), seed=2)
    found = difference(one, other)
    assert {group.name: (group.first, group.second) for group in found.groups} == {
        "conv1": (GroupSide(16, 16), GroupSide(8, 16)),
        "layer1.0.conv1": (GroupSide(4, 16), GroupSide(5, 16)),
    }
    assert found.alike == 10
    assert found.values == {"recipe.epochs": ("4", "3"), "seed": ("0", "2")}
    assert found.costs == ((really_cut({}), really_cut(CUT)), (really_cut({}), really_cut(other.widths)))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"widths": {**CUT, "conv1": 3}},
        {"model": ModelSpec(name="resnet20", num_classes=100)},
        {"model": ModelSpec(name="resnet20", options={"widths": [16, 32, 64]})},
        {"criterion": CriterionSpec(name="fpgm")},
        {"criterion": CriterionSpec(name="l1", options={"a": "1"})},
        {"criteria": {"layer1.0.conv1": CriterionSpec(name="fpgm")}},
        {"auxiliary": AuxiliaryPlacement(positions=2)},
        {"recipe": Recipe(clip_norm=1.5)},
        {"recipe": Recipe(channels_last=False)},
    ],
)
def test_every_part_of_a_policy_counts_as_a_difference(change):
    one, other = resnet_policy(), resnet_policy().model_copy(update=change)
    layout = layout_of(other.model)
    assert not diff_policies(one, laid_out(), other, layout).is_empty
    assert diff_policies(other, layout, other, layout).is_empty


def test_criteria_of_groups_are_compared_only_where_several_rank():
    fpgm, l1 = CriterionSpec(name="fpgm"), CriterionSpec(name="l1")
    assert difference(resnet_policy(), resnet_policy(criterion=fpgm)).groups == ()
    mixed = difference(resnet_policy(), resnet_policy(criteria={"layer1.0.conv1": fpgm}))
    (group,) = mixed.groups
    assert (group.name, group.first.criterion, group.second.criterion) == ("layer1.0.conv1", l1, fpgm)


def test_whole_groups_may_be_named_or_not():
    named = resnet_policy({**CUT, "conv1": 16})
    assert named != resnet_policy()
    assert difference(named, resnet_policy()).is_empty


def test_policies_of_two_networks_have_groups_on_one_side_only():
    found = difference(resnet_policy(), resnet_policy({}, "resnet18"))
    sides = {group.name: (group.first, group.second) for group in found.groups}
    assert sides["layer4.0.conv1"] == (None, GroupSide(512, 512))
    assert sides["layer1.2.conv1"] == (GroupSide(16, 16), None)
    assert found.values["model"] == ("resnet20", "resnet18")


def test_equal_policies_are_told_by_their_fingerprint(call, written):
    one, same, named, other = written(
        resnet_policy(), resnet_policy(), resnet_policy({**CUT, "conv1": 16}), resnet_policy(seed=1)
    )
    assert call("diff", one, same)[1] == f"{one} and {same} are equal: fingerprint {resnet_policy().fingerprint}\n"
    assert "do the same: they only name different groups that keep all" in call("diff", one, named)[1]
    code, text, _ = call("diff", one, other)
    assert code == 0
    assert "seed        0 → 1" in text
    assert "groups      0 of 12 differ" in text


# ── transfer ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_is_moved_to_a_deeper_network_with_other_classes(call, written, tmp_path):
    output = tmp_path / "new" / "moved.json"
    code, text, complaint = call(
        "transfer", written(resnet_policy()), "--model", "resnet56", "--num-classes", "100", "-o", output
    )
    assert (code, complaint) == (0, "")
    moved = load_policy(output)
    assert moved.model == ModelSpec(name="resnet56", num_classes=100)
    moved.check(laid_out("resnet56").groups)
    assert [moved.widths[f"layer1.{block}.conv1"] for block in range(4)] == [4, 7, 10, 13]
    assert "layer1.4.conv1" not in moved.widths
    assert "layer1.2.conv1" in text
    assert "← layer1.0.conv1 50 %, layer1.1.conv1 50 %" in text
    layout = laid_out("resnet56")
    shares = layout.cost.cost(moved.widths).macs / layout.cost.full.macs, really_cut(CUT).macs / 40_551_040
    assert f"MACs  resnet56 {100 * shares[0]:.1f} % of its own, resnet20 {100 * shares[1]:.1f} %" in text


def test_a_moved_policy_meets_a_budget(call, written, tmp_path):
    output, full = tmp_path / "moved.json", laid_out("resnet56").cost.full.macs
    policy = written(resnet_policy(dict.fromkeys(laid_out().groups, 12)))
    assert call("transfer", policy, "--model", "resnet56", "--macs", "40%", "-o", output)[0] == 0
    assert 0.396 * full <= laid_out("resnet56").cost.cost(load_policy(output).widths).macs <= 0.4 * full
    assert call("transfer", policy, "--model", "resnet56", "--macs", full // 2, "-o", output, "--force")[0] == 0
    assert 0.495 * full <= laid_out("resnet56").cost.cost(load_policy(output).widths).macs <= 0.5 * full


def test_an_experiment_or_a_sweep_may_be_the_target(call, written, file, tmp_path):
    source = tiny.experiment(tmp_path / "sweeps")
    layout = layout_for(source.model, source)
    policy = Policy(model=source.model, network=layout.groups.signature, widths={"first": 4, "second": 4})
    wide = file(model={"name": "tiny:network", "options": {"widths": [16, 20]}})
    assert call("transfer", written(policy), wide, "-o", tmp_path / "wide.json")[0] == 0
    assert load_policy(tmp_path / "wide.json").widths == {"first": 8, "second": 5}
    assert load_policy(tmp_path / "wide.json").model.options == {"widths": [16, 20]}
    (tmp_path / "experiment.yaml").write_text(wide.read_text())
    options = ("--set", "model.options.widths=[8,8]", "-o", tmp_path / "narrow.json")
    assert call("transfer", tmp_path / "wide.json", tmp_path, *options)[0] == 0
    assert load_policy(tmp_path / "narrow.json").widths == {"first": 4, "second": 2}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "transfer: expected TARGET, or --model or --num-classes, got neither"),
        (("sweep", "--model", "resnet56"), "transfer: expected TARGET, or --model or --num-classes, got both"),
        (("--model", "resnet65"), "unknown model 'resnet65'; did you mean 'resnet56'?"),
        (("--model", "{nam: resnet56}"), "--model: nam: unknown key; did you mean 'name'?"),
        (("--model", "[resnet56"), "--model: expected a name, or {name: …, options: {…}}, got '[resnet56'"),
        (("--model", "alexnet"), "transfer: expected a network like resnet20, got alexnet: no group of it stands"),
        (("--model", "resnet56", "--macs", "1%"), "--macs: expected "),
        (("--model", "resnet56", "--macs", "half"), "max_macs: expected a number or a percentage, got 'half'"),
        (("--model", "resnet56", "--set", "a=b"), "--set a=b: expected an experiment that it changes, got none"),
        (("nowhere.yaml",), "experiment nowhere.yaml: No such file or directory"),
    ],
)
def test_a_transfer_that_cannot_be_is_one_line(refused, written, tmp_path, monkeypatch, arguments, reason):
    policy = written(resnet_policy({"layer1.0.conv1": 4}))
    monkeypatch.chdir(tmp_path)
    assert reason in refused("transfer", policy, *arguments)


def test_a_policy_is_not_overwritten(refused, written):
    one, other = written(resnet_policy(), resnet_policy(seed=1))
    assert "b.json: exists; name another file with --output, or pass --force" in refused(
        "transfer", one, "--model", "resnet56", "-o", other
    )


def test_a_model_is_a_name_or_has_options_and_keeps_the_classes_unless_told():
    model = ModelSpec(name="resnet20", num_classes=7, options={"in_channels": 1})
    assert model_like(model, None, 5) == model.model_copy(update={"num_classes": 5})
    assert model_like(model, "resnet56", None) == ModelSpec(name="resnet56", num_classes=7)
    wide = model_like(model, "{name: resnet20, num_classes: 9, options: {widths: [32, 64, 128]}}", None)
    assert wide == ModelSpec(name="resnet20", num_classes=9, options={"widths": [32, 64, 128]})
    with pytest.raises(SearchError, match="--model: model: expected"):
        model_like(model, "3", None)


def test_a_transferred_policy_without_room_for_its_budget_names_what_can_be_reached():
    policy = resnet_policy({"layer1.0.conv1": 4})
    with pytest.raises(PolicyError, match=r"^--macs: expected \d+ to \d+ MACs, which the widths can reach, got 202755"):
        move_policy(policy, RESNET, macs="0.5%")
