"""Latencies are measured once for each network, image, batch and machine; whoever asks again finds them."""

import json
import re

import pytest
import tiny
import torch

from pruning import latency_model
from search import apply, latencies
from search.apply import apply_policy
from search.bench import bench
from search.config import load_experiment, model_experiment
from search.inputs import device_name
from search.prepare import prepare

MODEL = ("tiny:network", "--input-shape", "1x8x8", "--widths", "10", "--set", "latency.repeats=2")


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """Takes the place of the clock: a network of a channels takes a ms; tells how many networks were measured."""
    seen = []

    def compare(networks, example_input, *, repeats, warmup):
        seen.append((len(example_input), len(networks) - 1, torch.get_num_threads()))
        return {name: Took(network.first.out_channels * len(example_input)) for name, network in networks.items()}

    monkeypatch.setattr(latency_model, "compare_latency", compare)
    monkeypatch.chdir(tmp_path)
    return seen


class Took:
    def __init__(self, median_ms):
        self.median_ms = float(median_ms)


def tables(tmp_path):
    return sorted((tmp_path / "sweeps" / "cache" / "latencies").glob("*"))


def test_a_table_goes_from_the_narrowest_to_the_full_network(call, passes, tmp_path):
    code, text, _ = call("bench", *MODEL, "--batch", "2")
    assert code == 0
    assert "2 of 2 channel groups are cut, images of 1×8×8" in text
    assert f"{device_name('cpu')}, threads: 1, torch {torch.__version__}" in text
    assert "latency at a batch of 2: measuring 10 networks\n  8 of 10\n  10 of 10\n" in text
    headers, *rows = (line.split("  ") for line in text.split("a batch of 2\n")[1].splitlines())
    cells = [[cell.strip() for cell in row if cell] for row in rows[:-1]]
    assert [header.strip() for header in headers if header] == [
        "channels",
        "MACs",
        "measured (ms)",
        "predicted (ms)",
        "error",
    ]
    assert len(cells) == 10
    assert (cells[0][0], cells[0][2]) == ("8.3 %", "2")  # one channel of 8 and one of 16
    assert cells[-1][:3] == ["100.0 %", "100.0 %", "16"]
    for _, _, measured, predicted, error in cells:
        assert float(error.removesuffix(" %")) == pytest.approx(100 * (float(predicted) / float(measured) - 1), abs=1)
    (path,) = tables(tmp_path)
    assert f"kept in {path.relative_to(tmp_path)}" in text


def test_what_is_predicted_did_not_see_the_measurement(passes):
    asked = load_tiny_model()
    (found,) = bench(asked, image=(1, 8, 8), networks=3, by_name=True)
    seen = found.table.model.microseconds(torch.tensor(found.table.widths).numpy()) / 1000
    assert seen.tolist() == pytest.approx(found.table.milliseconds)
    assert list(found.table.predicted) != pytest.approx(found.table.milliseconds)


def load_tiny_model(*settings):
    return model_experiment("tiny:network", ["latency.repeats=2", *settings])


def test_a_second_run_measures_nothing_and_says_so(call, passes):
    _, first, _ = call("bench", *MODEL, "--batch", "1,64")
    assert [batch for batch, _, _ in passes] == [1, 1, 64, 64]
    assert "known from before" not in first
    passes.clear()
    code, second, _ = call("bench", *MODEL, "--batch", "64,1")
    assert (code, passes) == (0, [])
    assert "latency at a batch of 64: 10 networks are known from before\n" in second
    assert "latency at a batch of 1: 10 networks are known from before\n" in second
    for part in ("\na batch of 1\n", "\na batch of 64\n"):
        shown = first.split(part)[1].split("\n\n")[0]
        assert shown.rstrip("\n") in second


def test_fewer_networks_are_there_already_and_more_are_measured(call, passes):
    call("bench", *MODEL)
    for widths, measured in (("4", 0), ("11", 11), ("10", 0)):
        passes.clear()
        assert call("bench", *MODEL, "--widths", widths)[0] == 0
        assert sum(networks for _, networks, _ in passes) == measured


@pytest.mark.parametrize(
    "change",
    [
        ["--batch", "3"],
        ["--step", "2"],
        ["--input-shape", "1x10x10"],
        ["--set", "resources.threads=2"],
        ["--set", "search.groups=first"],
        ["--set", "model.num_classes=11"],
        ["--set", "latency.repeats=3"],
    ],
    ids=" ".join,
)
def test_whatever_latency_depends_on_makes_another_table(call, passes, tmp_path, change):
    call("bench", *MODEL)
    passes.clear()
    call("bench", *MODEL, *change)
    assert passes
    assert len(tables(tmp_path)) == 2


def test_another_device_or_torch_makes_another_table(call, passes, tmp_path, monkeypatch):
    for name in ("one processor", "another"):
        monkeypatch.setattr(latencies, "device_name", lambda _, name=name: name)
        call("bench", *MODEL)
    monkeypatch.setattr(torch, "__version__", "9.9")
    call("bench", *MODEL)
    found = [json.loads(path.read_text())["about"] for path in tables(tmp_path)]
    assert sorted((about["device"], about["torch"] == "9.9") for about in found) == [
        ("another", False),
        ("another", True),
        ("one processor", False),
    ]


def test_as_many_threads_measure_as_trials_have(call, passes):
    before = torch.get_num_threads()
    call("bench", *MODEL, "--set", f"resources.threads={before + 1}")
    assert {threads for _, _, threads in passes} == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"about": {}}', "rows", "columns"], ids=["torn", "list", "keys", "rows", "columns"]
)
def test_a_table_that_is_none_is_measured_again(call, passes, tmp_path, damage):
    call("bench", *MODEL)
    (path,) = tables(tmp_path)
    whole = json.loads(path.read_text())
    if damage == "rows":
        damage = json.dumps(whole | {"predicted": whole["predicted"][1:]})
    elif damage == "columns":
        damage = json.dumps(whole | {"widths": [row[1:] for row in whole["widths"]]})
    path.write_text(damage)
    for sum_of in (tmp_path / "sweeps" / "cache" / "sums").glob("*"):
        sum_of.unlink()  # which would tell already
    passes.clear()
    code, text, complaint = call("bench", *MODEL)
    assert (code, complaint, bool(passes)) == (0, "", True)
    assert "known from before" not in text
    assert json.loads(path.read_text()) == whole


def test_an_interruption_leaves_what_is_finished_and_nothing_half(call, monkeypatch, passes, tmp_path):
    compare = latency_model.compare_latency

    def interrupted(networks, example_input, **options):
        if len(example_input) == 64:
            raise KeyboardInterrupt
        return compare(networks, example_input, **options)

    monkeypatch.setattr(latency_model, "compare_latency", interrupted)
    code, _, complaint = call("bench", *MODEL, "--batch", "1,64")
    assert (code, complaint) == (130, "interrupted\n")
    assert len(tables(tmp_path)) == 1
    monkeypatch.setattr(latency_model, "compare_latency", compare)
    passes.clear()
    assert call("bench", *MODEL, "--batch", "1,64")[0] == 0
    assert {batch for batch, _, _ in passes} == {64}


# ── who else asks ────────────────────────────────────────────────────────────────────────────────────────────────────


BUDGET = {"search": {"budget": {"of": "latency_ms"}, "widths": {"round_to": 4}}, "latency": {"batch": 2, "repeats": 2}}


def test_a_sweep_finds_what_was_measured_for_its_file(call, file, passes, tmp_path):
    path = file(**BUDGET)
    assert call("bench", path, "--widths", "5")[0] == 0
    (table,) = (tmp_path / "sweeps" / "cache" / "latencies").glob("*.json")
    assert sum(networks for _, networks, _ in passes) == 5
    passes.clear()
    told = []
    inputs = prepare(load_experiment(path), told.append)
    assert passes == []
    assert "latency at a batch of 2: 5 networks are known from before" in told
    assert inputs.latency.to_dict() == json.loads(table.read_text())["model"]


def test_a_sweep_finds_what_was_measured_by_name(call, file, passes, tmp_path):
    options = ["--step", "4", "--batch", "2", "--input-shape", "1x8x8", "--set", "latency.repeats=2"]
    assert call("bench", "tiny:network", *options)[0] == 0
    passes.clear()
    prepare(load_experiment(file(**BUDGET)))
    assert passes == []


def test_bench_finds_what_a_sweep_measured(call, file, passes):
    path = file(**BUDGET)
    prepare(load_experiment(path))
    assert sum(networks for _, networks, _ in passes) == 40
    passes.clear()
    assert "40 networks are known from before" in call("bench", path)[1]
    assert passes == []


def test_a_policy_is_applied_without_measuring_what_others_would_take(file, passes, tmp_path, monkeypatch):
    experiment = load_experiment(file(**BUDGET, recipe={"epochs": 0}))
    inputs = prepare(experiment)
    policy = tiny.Policy(
        model=experiment.model, network=inputs.groups.signature, widths={"first": 4, "second": 8}, recipe={"epochs": 0}
    )
    passes.clear()
    monkeypatch.setattr(apply, "compare_latency", lambda networks, *_, **__: dict.fromkeys(networks, Took(1)))
    apply_policy(policy, experiment, tmp_path / "pruned")
    assert passes == []


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["tiny:network", "--input-shape", "1x8x8", "--batch", "1,x"],
            "--batch: expected numbers of images .* got '1,x'",
        ),
        (["tiny:network", "--input-shape", "1x8x8", "--batch", "0"], "--batch: expected numbers of images .* got '0'"),
        (["tiny:network", "--input-shape", "8x8"], "--input-shape: expected channels, height and width .* got '8x8'"),
        (["tiny:network", "--input-shape", "1x0x8"], "--input-shape: .* got '1x0x8'"),
        (["tiny:network"], "expected an attribute input_shape"),
        (["tiny:network", "--input-shape", "3x8x8"], r"does not .* \(\d, 3, 8, 8\)"),
        (["resnet57"], "unknown model 'resnet57'.*did you mean 'resnet56'"),
        (["nowhere.yaml"], "experiment nowhere.yaml: No such file"),
        (["resnet20", "--step", "0"], "--step"),
        (["resnet20", "--widths", "1"], "--widths"),
        (["resnet20", "--device", "tpu"], "--device"),
        (["resnet20", "--set", "latency"], "--set: expected a.b=c, got 'latency'"),
        (["resnet20", "--set", "latency.batches=3"], "latency.batches"),
        (["resnet20", "--set", "search.groups=[nobody]"], "unknown channel group 'nobody'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_measured(refused, passes, arguments, reason):
    assert re.search(reason, refused("bench", *arguments))
    assert passes == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_told(refused, passes):
    assert "--device: expected one that is there, got cuda" in refused("bench", "resnet20", "--device", "cuda")
