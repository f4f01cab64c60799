"""Files as earlier versions wrote them: every version reads them, and understands the same.

The files in `golden` are never written anew; a change of a format adds some.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

from pruning import (
    AuxiliaryPlacement,
    CriterionSpec,
    ModelSpec,
    Policy,
    Recipe,
    find_groups,
    layout_of,
    load_policy,
    load_pruned,
)
from search.comparison import load_cells
from search.config import load_experiment
from search.dialect import read_yaml
from search.pareto import hypervolume
from search.results import State
from search.schema import schema_of
from search.sweep import Sweep
from search.tracking.ledger import Ledger
from search.tracking.outbox import OUTBOX, read_lines

GOLDEN = Path(__file__).parent / "golden"
RESNET20 = ModelSpec(name="resnet20")
NETWORK = "70c71572f991a7de"
WIDTHS = {"layer1.0.conv1": 9, "layer2.1.conv1": 20, "layer3.2.conv1": 33}
POLICIES = {
    "policy-minimal": (
        Policy(model=RESNET20, network=NETWORK, widths={"layer1.0.conv1": 9}),
        "fa03f534026065e1",
    ),
    "policy-criteria": (
        Policy(
            model=RESNET20,
            network=NETWORK,
            widths=WIDTHS,
            criterion=CriterionSpec(name="l1"),
            criteria={
                "layer2.1.conv1": CriterionSpec(name="ccp", options={"joint": True, "label_smoothing": 0.1}),
            },
            seed=3,
        ),
        "1bd8e023cfdc1fc6",
    ),
    "policy-auxiliary-even": (
        Policy(
            model=RESNET20,
            network=NETWORK,
            widths=WIDTHS,
            criterion=CriterionSpec(name="dcp", options={"rate": 0.5}),
            auxiliary=AuxiliaryPlacement(kind="even", positions=2, head="dcp", weight=1.0),
            recipe=Recipe(
                epochs=40, learning_rate=0.1, schedule="steps", milestones=(0.4, 0.6), auxiliary="sequential"
            ),
        ),
        "32ecff79f389309d",
    ),
    "policy-auxiliary-explicit": (
        Policy(
            model=RESNET20,
            network=NETWORK,
            widths=WIDTHS,
            auxiliary=AuxiliaryPlacement(kind="explicit", positions=(3, "layer2.1"), head="ccp", weight=0.25),
            recipe=Recipe(
                optimizer="adamw",
                clip_norm=1.0,
                distillation=0.5,
                temperature=2.0,
                channels_last=True,
                precision="float32",
            ),
        ),
        "1db81c12163729ea",
    ),
    "policy-thinned": (
        Policy(
            model=ModelSpec(name="resnext50_32x4d"),
            network="a44abd08f809242a",
            widths={"layer3.0.conv1": 9, "layer3.0.conv2": 7, "layer1.0.conv1": 30},
            thinned=("layer3.0.conv2",),
        ),
        "778b76811f297484",
    ),
}


def faults(kind, tree):
    return [error.message for error in Draft202012Validator(schema_of(kind)).iter_errors(tree)]


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_means_what_it_meant(name):
    expected, fingerprint = POLICIES[name]
    found = load_policy(GOLDEN / f"{name}.json")
    assert found == expected
    assert found.fingerprint == fingerprint
    assert faults("policy", json.loads((GOLDEN / f"{name}.json").read_text())) == []


def test_a_policy_of_then_is_written_as_it_was():
    for name in POLICIES:
        if name != "policy-minimal":
            assert load_policy(GOLDEN / f"{name}.json").to_json() == (GOLDEN / f"{name}.json").read_text()


def test_the_network_of_a_policy_has_the_signature_that_it_had():
    assert layout_of(RESNET20).groups.signature == NETWORK


# ── experiments ──────────────────────────────────────────────────────────────────────────────────────────────────────


def missing(expected, found, place=""):
    """Every place below which a tree has not what is expected; it may have more keys."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [gap for key, value in expected.items() for gap in missing(value, found.get(key), f"{place}.{key}")]
    return [] if expected == found else [f"{place}: {expected} is now {found}"]


def test_an_experiment_means_what_it_meant():
    expected = json.loads((GOLDEN / "experiment.expected.json").read_text())
    found = load_experiment(GOLDEN / "experiment.yaml").model_dump(mode="json")
    assert missing(expected, found) == []
    assert faults("experiment", read_yaml((GOLDEN / "experiment.yaml").read_text())) == []


def test_a_comparison_has_the_cells_that_it_had():
    cells = load_cells(GOLDEN / "compare.yaml")
    told = [(cell.row, cell.values, cell.seed, cell.experiment.search.criterion[0], cell.test) for cell in cells]
    random = {seed: CriterionSpec(name="random", options={"seed": seed}) for seed in (0, 4)}
    assert told == [
        (
            row,
            {"search.ranking_images": images},
            seed,
            random[seed] if row == "random" else CriterionSpec(name="l1"),
            True,
        )
        for row in ("l1", "random")
        for images in ("256", "1024")
        for seed in (0, 4)
    ]
    assert faults("experiment", read_yaml((GOLDEN / "compare.yaml").read_text())) == []


# ── a pruned network ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pruned_network_says_what_it_said():
    pruned = load_pruned(GOLDEN / "pruned")
    with torch.no_grad():
        logits = pruned.model(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16))
    assert logits[0].tolist() == pytest.approx([-0.0525905, 0.0389582, -0.1082045], abs=1e-5)
    assert pruned.policy.fingerprint == "772161be6e477ae4"
    assert pruned.kept["layer3.0.conv1"] == (0, 1, 4, 5)
    assert {name: len(kept) for name, kept in pruned.kept.items()} == pruned.policy.widths
    assert find_groups(pruned.model, torch.zeros(1, 3, 16, 16)).widths["layer3.0.conv1"] == 4


# ── a sweep ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sweep(tmp_path):
    """A copy: who reads a sweep's folder may lock it."""
    return shutil.copytree(GOLDEN / "sweep", tmp_path / "golden")


def test_a_sweep_has_the_trials_that_it_had(sweep):
    found = Sweep.load(sweep)
    assert [record.state for record in found.records] == [State.FINISHED] * 3 + [State.FAILED, State.RUNNING]
    assert [record.policy.widths for record in found.records] == [
        {"first": 8, "second": 7},
        {"first": 4, "second": 14},
        {"first": 2, "second": 14},
        {"first": 3, "second": 10},
        {"first": 7, "second": 13},
    ]
    assert [record.criterion for record in found.records] == [
        "l1",
        "fpgm, l1 on 1 group",
        "fpgm",
        "l1, fpgm on 1 group",
        "l1",
    ]
    first, failed = found.records[0], found.records[3]
    assert first.params["recipe.learning_rate"] == first.policy.recipe.learning_rate == 0.09384503725705565
    assert first.extra["source"] == "uniform at 55%"
    assert [metrics.epoch for metrics in first.history] == [0, 1]
    assert (first.metrics.accuracy, first.metrics.macs, first.metrics.params) == (0.1925925925925926, 12742, 686)
    assert failed.error == "broken"
    assert [record.number for record in found.front] == [2, 1, 0]
    assert found.baseline == {"accuracy": 0.2222222222222222, "loss": 2.278306975188079, "macs": 23200, "params": 1442}
    assert found.widths == {"first": 8, "second": 16}
    assert not found.is_finished
    assert hypervolume(found.records, found.experiment.objectives, found.baseline) == pytest.approx(0.0821710383442891)


def test_the_lines_for_mlflow_say_of_a_sweep_what_its_journal_says(sweep):
    ledger = Ledger()
    for line, _ in read_lines(sweep / OUTBOX):
        ledger.add(line)
    records = {record.number: record for record in Sweep.load(sweep).records}
    assert ledger.sweep["sweep_id"] == "2fae9ed23b3e42648b4212b0a39676a6"
    assert set(ledger.records) == set(records)
    assert ledger.running == ledger.interrupted == {4}
    for number, record in ledger.records.items():
        expected = records[number]
        assert (record.state, record.policy, record.params) == (expected.state, expected.policy, expected.params)
        assert (record.metrics, record.error) == (expected.metrics, expected.error)
        assert list(ledger.measured[number].values()) == list(expected.history)
    assert [member.number for member in ledger.progress_with(records[3]).standing.front] == [2, 1, 0]
