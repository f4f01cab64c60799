"""The schemas of policies and experiments say what the loaders take, as people write it."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pruning import AuxiliaryPlacement, CriterionSpec, ModelSpec, Policy, PolicyError, Recipe
from search.comparison import load_cells
from search.config import load_experiment, parse_experiment
from search.dialect import read_yaml
from search.errors import ExperimentError
from search.schema import MODELS, schema_of, schema_text

ROOT = Path(__file__).parents[2]
SMALL = "name: x\nmodel: resnet20\n"
POLICY = Policy(
    model=ModelSpec(name="resnet20", options={"widths": [16, 32, 64]}),
    network="0123456789abcdef",
    widths={"layer1.0.conv1": 3, "layer1.1.conv1": 4},
    criterion=CriterionSpec(name="taylor", options={"images": 512}),
    criteria={"layer1.1.conv1": CriterionSpec(name="l1")},
    auxiliary=AuxiliaryPlacement(kind="explicit", positions=(3, "layer2.1"), weight=0.5),
    recipe=Recipe(epochs=3, clip_norm=1.0),
)


def faults(kind, tree):
    """What a schema finds wrong, by its place."""
    found = Draft202012Validator(schema_of(kind)).iter_errors(tree)
    return {".".join(map(str, error.absolute_path)): error.message for error in found}


def with_section(text):
    return text if "model:" in text else SMALL + text


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", MODELS)
def test_the_schema_in_the_package_is_up_to_date(kind):
    kept = files("search") / "schemas" / f"{kind}.schema.json"
    again = f"prunesearch schema {kind} --output search/schemas/{kind}.schema.json --force"
    assert kept.read_text(encoding="utf-8") == schema_text(kind), again


@pytest.mark.parametrize("kind", MODELS)
def test_a_schema_is_one(kind):
    Draft202012Validator.check_schema(schema_of(kind))
    assert schema_of(kind)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_editors_are_told_what_a_key_means():
    widths = schema_of("experiment")["$defs"]["WidthSpace"]
    assert (
        widths["properties"]["round_to"]["description"] == "widths are multiples of so many filters, or the full width."
    )
    assert "Attributes" not in json.dumps(schema_of("experiment"))
    search = schema_of("experiment")["$defs"]["SearchSpace"]["properties"]
    assert search["time_budget"]["description"].startswith("Running time after which no more trials are proposed")


@pytest.mark.parametrize("kind", MODELS)
def test_a_schema_is_printed_or_written_and_nothing_overwritten(call, refused, tmp_path, kind):
    assert call("schema", kind) == (0, schema_text(kind), "")
    output = tmp_path / "a.json"
    assert call("schema", kind, "-o", output) == (0, f"schema written to {output}\n", "")
    assert output.read_text(encoding="utf-8") == schema_text(kind)
    assert "a.json: exists" in refused("schema", kind, "-o", output)


def test_the_schema_that_an_experiment_names_is_there():
    named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", (ROOT / "experiments/digits.yaml").read_text(), re.M)
    assert (ROOT / "experiments" / named[1]).resolve() == ROOT / "search" / "schemas" / "experiment.schema.json"


# ── experiments ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_of_the_repository_is_valid(file):
    tree = read_yaml(file.read_text(encoding="utf-8"))
    assert faults("experiment", tree) == {}
    cells = load_cells(file) if "compare" in tree else []
    for experiment in [cell.experiment for cell in cells[:3]] or [load_experiment(file)]:
        assert faults("experiment", read_yaml(experiment.to_yaml())) == {}  # as it is kept in a sweep's folder


def test_the_examples_of_the_readme_are_valid():
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(texts) >= 2
    for text in texts:
        assert faults("experiment", read_yaml(with_section(text))) == {}


@pytest.mark.parametrize(
    "text",
    [
        "model: resnet20\nname: y",
        "data: digits",
        "data: {options: {size: 8}}",
        "weights:",
        "baseline: {epochs: 3}",
        "recipe: {learning_rate: 1e-3, milestones: [0.5], clip_norm: null, channels_last: auto}",
        "constraints: {macs: 60%, params: 6e7, accuracy: 0.9, latency_ms: 12.5 %}",
        "constraints: {macs: {value: 0.5, relative: true}}",
        "resources: {gpus: 0.25, threads: null}",
        "search: {time_budget: 2h}",
        "search: {time_budget: 90}",
        "search: {time_budget: 1.5 h}",
        "search: {scheduler: pareto_asha}",
        "search: {scheduler: {name: pareto_asha, factor: 2}}",
        "search: {groups: inner}",
        "search: {groups: [inner, 'layer1.*']}",
        "search: {widths: {minimum: 10%, around: hsic_lasso}}",
        "search: {widths: {around: {name: sensitivity, options: {criterion: {images: 64}}}}}",
        "search: {budget: 50%}",
        "search: {budget: 0.5}",
        "search: {budget: {minimum: 20%, maximum: 0.9, of: params}}",
        "search: {allocation: uniform}",
        "search: {allocation: [searched, {name: uniform, options: {rate: 0.5}}]}",
        "search: {criterion: l1}",
        "search: {criterion: [l1, {name: random, options: {seed: 1}}]}",
        "search: {criterion: {name: ccp, choices: {label_smoothing: [0, 0.1]}}}",
        "search: {start: papers}",
        "search: {start: []}",
        "search: {surrogate: none}",
        "search: {surrogate: {kind: quadratic, share: 0.5}}",
        "search: {auxiliary: 3}",
        "search: {auxiliary: [0, 1, 2]}",
        "search: {auxiliary: {count: [0, 3], placement: free, head: ccp, weight: 0.5}}",
        "search: {auxiliary: {positions: [7, layer3.2], weight: {low: 0.1, high: 1, log: true}}}",
        "search: {auxiliary: {positions: 7, weight: [0.3, 1.0]}}",
        "search: {recipe: {epochs: 3, batch_size: [64, 128], learning_rate: {low: 0.01, high: 0.1}, augment: false}}",
    ],
)
def test_what_a_file_may_say_in_short_is_valid(tmp_path, text):
    tree = read_yaml(with_section(text))
    assert faults("experiment", tree) == {}
    assert faults("experiment", read_yaml(parse_experiment(tree, tmp_path).to_yaml())) == {}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("serch: {}", ""),
        ("search: {trails: 3}", "search"),
        ("search: {trials: many}", "search.trials"),
        ("search: {trials: 2.5}", "search.trials"),
        ("search: {trials: 0}", "search.trials"),
        ("search: {sampler: cmaes}", "search.sampler"),
        ("search: {scheduler: asha}", "search.scheduler"),
        ("search: {scheduler: {factor: 2}}", "search.scheduler"),
        ("search: {time_budget: 2 days}", "search.time_budget"),
        ("search: {groups: []}", "search.groups"),
        ("search: {widths: {minimun: 10%}}", "search.widths"),
        ("search: {widths: {minimum: 50}}", "search.widths.minimum"),
        ("search: {widths: {minimum: ten}}", "search.widths.minimum"),
        ("search: {budget: 50}", "search.budget"),
        ("search: {budget: half}", "search.budget"),
        ("search: {budget: {of: flops}}", "search.budget"),
        ("search: {allocation: []}", "search.allocation"),
        ("search: {allocation: [{nam: uniform}]}", "search.allocation"),
        ("search: {criterion: 3}", "search.criterion"),
        ("search: {criterion: [l1, {name: l1, option: {}}]}", "search.criterion"),
        ("search: {criterion: {name: ccp, choices: 3}}", "search.criterion"),
        ("search: {surrogate: nothing}", "search.surrogate"),
        ("search: {auxiliary: -1}", "search.auxiliary"),
        ("search: {auxiliary: {weight: heavy}}", "search.auxiliary"),
        ("search: {recipe: {batchsize: [1]}}", "search.recipe"),
        ("search: {recipe: {learning_rate: {lo: 1, high: 2}}}", "search.recipe.learning_rate"),
        ("recipe: {learning_rate: fast}", "recipe.learning_rate"),
        ("recipe: {optimizer: sdg}", "recipe.optimizer"),
        ("constraints: {mac: 50%}", "constraints"),
        ("constraints: {macs: half}", "constraints.macs"),
        ("objectives: [accuracy]", "objectives"),
        ("objectives: [accuracy, flops]", "objectives.1"),
        ("resources: {gpus: -1}", "resources.gpus"),
        ("data: 3", "data"),
        ("model: {nam: resnet20}\nname: x", "model"),
        ("name: a/b\nmodel: resnet20", "name"),
        ("name: x\nmodel:", "model"),
        ("compare: {seeds: 3}", "compare"),
        ("compare: {row: {}}", "compare"),
    ],
)
def test_a_mistake_is_marked_at_its_place_and_the_loader_refuses_it_too(tmp_path, text, place):
    tree = read_yaml(with_section(text))
    assert list(faults("experiment", tree)) == [place]
    if "compare" not in tree:
        with pytest.raises(ExperimentError):
            parse_experiment(tree, tmp_path)
        return
    (tmp_path / "x.yaml").write_text(with_section(text))
    with pytest.raises(ExperimentError):
        load_cells(tmp_path / "x.yaml")


def test_an_experiment_needs_a_name_and_a_network():
    assert "'name' is a required property" in faults("experiment", {"model": "m"})[""]
    assert "'model' is a required property" in faults("experiment", {"name": "m"})[""]


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def changed(**fields):
    """The policy with other top-level fields; None takes one away."""
    content = json.loads(POLICY.to_json()) | fields
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    "tree",
    [
        json.loads(POLICY.to_json()),
        {"model": {"name": "resnet20"}, "network": "0", "widths": {}},
        changed(auxiliary={"positions": 3}),
        changed(criteria=None, criterion=None, recipe=None, seed=None, format=None, auxiliary=None),
    ],
)
def test_a_policy_is_valid(tree):
    assert faults("policy", tree) == {}
    Policy.from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        (changed(width={"a": 3}), ""),
        (changed(format=2), "format"),
        (changed(model=None), ""),
        (changed(model="resnet20"), "model"),
        (changed(widths={"a": 0}), "widths.a"),
        (changed(widths={"a": 2.5}), "widths.a"),
        (changed(widths={"a": "5"}), "widths.a"),
        (changed(widths={"a": True}), "widths.a"),
        (changed(recipe={"epoch": 3}), "recipe"),
        (changed(recipe={"optimizer": "sdg"}), "recipe.optimizer"),
        (changed(criteria={"layer1.0.conv1": "l1"}), "criteria.layer1.0.conv1"),
        (changed(criterion={"name": "l1", "option": {}}), "criterion"),
        (changed(auxiliary={"positions": 0}), "auxiliary"),
        (changed(seed=-1), "seed"),
    ],
)
def test_a_mistake_in_a_policy_is_marked_and_refused(tree, place):
    assert list(faults("policy", tree)) == [place]
    with pytest.raises(PolicyError):
        Policy.from_json(json.dumps(tree))
