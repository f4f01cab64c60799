import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning import CriterionSpec
from search.comparison import load_cells
from search.config import Experiment, load_experiment, parse_experiment
from search.errors import ExperimentError
from search.sections import AllocationSpec, Limit, Span

ROOT = Path(__file__).parents[2]
SMALL = {"name": "x", "model": "resnet20"}


def load(folder, text, *changes):
    file = folder / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return load_experiment(file, changes)


def change(tmp_path, *changes):
    """Return the small experiment with settings on top."""
    return load(tmp_path, "name: x\nmodel: resnet20\n", *changes)


def fault(tmp_path, text):
    """Return the message for the small experiment with a faulty section."""
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, f"name: x\nmodel: resnet20\n{text}\n")
    message = str(caught.value)
    assert "\n" not in message
    return message


# ── what a file says ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("written", "share"), [("50%", 0.5), ("0.5", 0.5), ("1", 1.0)])
def test_a_single_budget_is_both_its_ends(tmp_path, written, share):
    budget = load(tmp_path, f"name: one\nmodel: resnet20\nsearch: {{budget: {written}}}\n").search.budget
    assert (budget.minimum, budget.maximum) == (share, share)


def test_the_example_of_the_readme_means_what_it_says(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    experiment = load(tmp_path, text)
    assert experiment.model.name == "resnet56"
    assert experiment.weights == tmp_path / "resnet56-4bfd9763.th"
    assert experiment.data.options == {"root": str(tmp_path / "cifar10")}
    assert experiment.constraints == {"macs": Limit(value=0.6, relative=True), "accuracy": Limit(value=0.9)}
    assert experiment.search.widths.minimum == 0.1
    assert experiment.search.budget.maximum == 0.9
    assert [criterion.name for criterion in experiment.search.criterion] == ["l1", "fpgm", "taylor"]
    assert [str(allocation) for allocation in experiment.search.allocation] == ["searched", "uniform", "global"]
    span, sizes = experiment.search.recipe["learning_rate"], experiment.search.recipe["batch_size"]
    assert (span, sizes) == (Span(low=0.001, high=0.1, log=True), [64, 128])
    assert set(yaml.safe_load(text)) <= set(Experiment.model_fields)


def test_what_the_readme_calls_a_default_is_one(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    shown, default = load(tmp_path, text), parse_experiment(SMALL, tmp_path)
    for name in ("objectives", "resources", "latency", "tracking", "storage", "cache_gib"):
        assert getattr(shown, name) == getattr(default, name), name
    named = ("trials", "concurrent", "sampler", "scheduler", "seed", "groups", "widths")
    for name in (*named, "criterion_per", "start", "surrogate"):
        assert getattr(shown.search, name) == getattr(default.search, name), name
    assert shown.search.budget.within(0.1) == default.search.budget.within(0.1)


def test_a_scheduler_is_a_name_or_a_name_with_options(tmp_path):
    named = change(tmp_path, "search.scheduler=pareto_asha").search.scheduler
    assert (named.name, named.factor, named.first) == ("pareto_asha", 3, 0)
    short = "search.scheduler=pareto_asha", "search.scheduler.factor=2"
    assert change(tmp_path, *short) == change(tmp_path, "search.scheduler={name: pareto_asha, factor: 2}")
    experiment = change(tmp_path, *short)
    assert load(tmp_path, experiment.to_yaml()).search.scheduler == experiment.search.scheduler


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_of_the_repository_loads(file):
    cells = load_cells(file) if "compare" in yaml.safe_load(file.read_text(encoding="utf-8")) else []
    for experiment in [cell.experiment for cell in cells] or [load_experiment(file)]:
        assert experiment.name == file.stem


@pytest.mark.parametrize(
    ("text", "place", "value"),
    [
        ("search: {recipe: {learning_rate: [1e-3, 2.5E+1]}}", "search.recipe.learning_rate", [0.001, 25.0]),
        ("model: {name: m, options: {rate: 5e-1}}", "model.options.rate", 0.5),
        ("model: {name: m, options: {version: '5e-1'}}", "model.options.version", "5e-1"),
        ("constraints: {macs: 6e7}", "constraints.macs", Limit(value=6e7)),
        ("constraints: {latency_ms: 12.5 %}", "constraints.latency_ms", Limit(value=0.125, relative=True)),
        ("search: {criterion: fpgm}", "search.criterion", (CriterionSpec(name="fpgm"),)),
        ("search: {allocation: uniform}", "search.allocation", (AllocationSpec(name="uniform"),)),
        ("search: {auxiliary: 3}", "search.auxiliary.count", (3,)),
        ("search: {auxiliary: {head: ccp, weight: 0.5}}", "search.auxiliary.weight", [0.5]),
        ("search: {groups: 'layer1.*'}", "search.groups", ("layer1.*",)),
        ("search: {recipe: {epochs: 3}}", "search.recipe.epochs", [3]),
        ("data: digits", "data.name", "digits"),
        ("baseline: {epochs: 3}", "baseline.learning_rate", 0.05),  # not that of a recipe for fine-tuning
        ("baseline: {learning_rate: 0.1}", "baseline.epochs", 20),
        ("recipe: {epochs: 3}", "recipe.learning_rate", 0.01),
    ],
)
def test_a_file_may_say_it_short(tmp_path, text, place, value):
    found = load(tmp_path, f"name: x\n{'' if 'model' in text else 'model: resnet20'}\n{text}\n")
    assert at(found, place) == value
    assert type(at(found, place)) is type(value)


def at(value, place):
    for key in place.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value


TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))  # PyYAML folds what is a line's end elsewhere
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["1e-3", "no", "null", "~", "0x1f", "1_0", "2020-01-01", "a: b", "#", "é"]) | TEXT


@settings(max_examples=50, deadline=None)
@given(options=st.dictionaries(NAMES.filter(lambda name: name != "root"), PLAIN | NAMES, max_size=4))
def test_an_experiment_comes_back_from_its_yaml(tmp_path_factory, options):
    folder = tmp_path_factory.getbasetemp()
    before = parse_experiment(
        {
            **SMALL,
            "model": {"name": "m", "options": options},
            "data": {"name": "digits", "options": options},
            "weights": "/w.th",
            "storage": "/sweeps",
            "constraints": {"macs": "33.3%", "accuracy": 1e-5},
            "objectives": ["accuracy", "latency_ms", "params"],
            "search": {
                "criterion": ["l1", {"name": "random", "options": {"seed": 3}}],
                "recipe": {"learning_rate": {"low": 1e-7, "high": 1, "log": True}, "epochs": [1, 2]},
                "widths": {"minimum": "7%"},
            },
        },
        folder,
    )
    assert load(folder, before.to_yaml()) == before


def test_an_experiment_is_frozen_and_knows_its_folder(tmp_path):
    experiment = parse_experiment(SMALL, tmp_path)
    assert experiment.folder == tmp_path / "sweeps" / "x"
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "y"


@pytest.mark.parametrize(
    ("sections", "measures"),
    [
        ({}, False),
        ({"objectives": ["accuracy", "latency_ms"]}, True),
        ({"constraints": {"latency_ms": "50%"}}, True),
    ],
)
def test_latency_is_measured_where_it_is_asked_for_or_limited(sections, measures):
    assert parse_experiment(SMALL | sections).measures_latency is measures


def test_a_limit_is_of_the_baseline_or_absolute():
    relative, absolute = (Limit.model_validate(Limit.parse(text)) for text in ("50%", "6e7"))
    assert (relative.of(90), str(relative)) == (45, "50%")
    assert (absolute.of(90), str(absolute)) == (6e7, "6e+07")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("search.trials=50", 50),
        ("name=y", "y"),
        ("recipe.learning_rate=1e-3", 0.001),
        ("search.criterion=[l1, fpgm]", (CriterionSpec(name="l1"), CriterionSpec(name="fpgm"))),
        ("objectives=[accuracy, params]", ("accuracy", "params")),
        ("constraints.macs=50%", Limit(value=0.5, relative=True)),
        ("search.widths.minimum=25%", 0.25),
        ("search.recipe.learning_rate={low: 1e-3, high: 1e-1, log: true}", Span(low=0.001, high=0.1, log=True)),
        ("model.num_classes=3", 3),  # the file says `model: resnet20`
        ("tracking.enabled=false", False),
        ("weights=", None),
        ("data.options.note=a=b", "a=b"),
    ],
)
def test_a_setting_reaches_its_place(tmp_path, setting, value):
    assert at(change(tmp_path, setting), setting.partition("=")[0]) == value


def test_settings_come_one_after_the_other_and_leave_the_rest(tmp_path):
    text = "name: x\nmodel: {name: resnet20, num_classes: 7}\nsearch:\nrecipe: {epochs: 5}\n"
    experiment = load(tmp_path, text, "search.trials=3", "recipe.batch_size=32", "search.trials=4")
    assert experiment.search.trials == 4
    assert (experiment.recipe.epochs, experiment.recipe.batch_size) == (5, 32)
    assert experiment.model.num_classes == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.trials", "--set: expected a.b=c, got 'search.trials'"),
        ("=3", "--set: expected a.b=c"),
        ("search.trials=[", "--set search.trials=[: '[' is not YAML"),
        ("search.criterion.0.name=l1", "search.criterion.0.0: unknown key"),
        ("objectives.first=macs", "--set objectives.first=macs: 'objectives' has no keys below it"),
        ("serch.trials=3", "serch: unknown key; did you mean 'search'?"),
        ("search.trials=many", "search.trials: "),
    ],
)
def test_a_setting_that_does_not_fit_is_told(tmp_path, setting, message):
    text = "name: x\nmodel: resnet20\nobjectives: [accuracy, macs]\nsearch: {criterion: l1}\n"
    with pytest.raises(ExperimentError, match=f"^{re.escape(message)}"):
        load(tmp_path, text, setting)


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_paths_in_a_file_start_at_its_folder_and_in_settings_at_the_working_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "a here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    text = "name: x\nmodel: m\nweights: w.th\nstorage: s\ndata: {name: image_folder, options: {root: r}}\n"
    paths = ("weights", "storage", "data.options.root")
    for found in (load(there, text), load(Path("../there"), text)):
        assert [Path(at(found, place)).resolve() for place in paths] == [there / "w.th", there / "s", there / "r"]
    changed = load(there, text, "weights=w.th", "storage=s", "data.options.root=r")
    assert [Path(at(changed, place)) for place in paths] == [here / "w.th", here / "s", here / "r"]
    for setting in ("data={name: image_folder, options: {root: r}}", "data.options={root: r}"):
        assert Path(load(there, text, setting).data.options["root"]) == here / "r"


def test_absolute_paths_stay_and_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    text = "name: x\nmodel: m\nweights: ~/w.th\nstorage: /s\ndata: {options: {root: ~/r}}\n"
    experiment = load(tmp_path, text)
    assert (experiment.weights, experiment.storage) == (Path("/home/somebody/w.th"), Path("/s"))
    assert experiment.data.options["root"] == "/home/somebody/r"
    changed = load(tmp_path, text, "weights=~/v.th", "data.options.root=~/q")
    assert (changed.weights, changed.data.options["root"]) == (Path("/home/somebody/v.th"), "/home/somebody/q")


def test_a_sweeps_folder_names_its_experiment_wherever_it_lies(tmp_path):
    moved = tmp_path / "moved" / "x"
    moved.mkdir(parents=True)
    load(moved, parse_experiment(SMALL | {"storage": "/gone"}).to_yaml())
    assert load_experiment(moved).storage == tmp_path / "moved"
    assert load_experiment(moved, ["storage=/else"]).storage == Path("/else")


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("serch: {}", "serch", "search"),
        ("search: {trails: 3}", "search.trails", "trials"),
        ("search: {widths: {minimun: 10%}}", "search.widths.minimun", "minimum"),
        ("search: {criterion: [l1, {name: l1, option: {}}]}", "search.criterion.1.option", "options"),
        ("recipe: {learning_rat: 1}", "recipe.learning_rat", "learning_rate"),
        ("baseline: {epoch: 1}", "baseline.epoch", "epochs"),
        ("search: {recipe: {batchsize: [1]}}", "search.recipe", "batch_size"),
        ("search: {criterion: fpgn}", "search.criterion", "fpgm"),
        ("search: {criterion: [{name: random, options: {sead: 1}}]}", "search.criterion", "seed"),
        ("search: {allocation: [uniforn]}", "search.allocation", "uniform"),
        ("search: {allocation: serched}", "search.allocation", "searched"),
        ("constraints: {mac: 50%}", "constraints", "macs"),
        ("resources: {cpu: 1}", "resources.cpu", "cpus"),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest(tmp_path, text, place, nearest):
    message = fault(tmp_path, text)
    assert message.startswith(f"{place}: ")
    assert message.endswith(f"did you mean '{nearest}'?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {sampler: cmaes}", "search.sampler: .*'nsga2', 'nsga3', 'tpe' or 'gp', got 'cmaes'"),
        ("search: {scheduler: asha}", "search.scheduler.name: .*'none' or 'pareto_asha', got 'asha'"),
        ("search: {scheduler: {factor: 2}}", "search.scheduler.name: "),
        ("search: {scheduler: {name: pareto_asha, factor: 1}}", "search.scheduler.factor: .*equal to 2, got 1"),
        ("search: {trials: 0}", "search.trials: .*greater than or equal to 1, got 0"),
        ("search: {trials: 2.5}", "search.trials: .*got 2.5"),
        ("search: {groups: []}", "search.groups: .*at least 1"),
        ("search: {criterion: []}", "search.criterion: .*at least 1"),
        ("search: {criterion: 3}", "search.criterion.0: .*got 3"),
        ("search: {widths: {minimum: 50}}", "search.widths.minimum: .*less than or equal to 1, got 50"),
        ("search: {widths: {per: scores, around: uniform}}", "search.widths: expected around with per group or stage"),
        ("search: {widths: {around: {name: uniform, options: {rate: 0.5}}}}", "search.widths: around: expected a rule"),
        ("search: {widths: {around: unifrom}}", "search.widths: unknown allocation 'unifrom'"),
        ("search: {budget: {of: flops}}", "search.budget.of: .*'params' or 'latency_ms', got 'flops'"),
        ("search: {surrogate: nothing}", "search.surrogate.kind: .*'quadratic' or 'none', got 'nothing'"),
        ("search: {criterion: {name: ccp, choices: 3}}", "search.criterion: choices: expected lists of values"),
        (
            "search: {criterion: {name: ccp, options: {joint: true}, choices: {joint: [true]}}}",
            "search.criterion: choices: expected options that are not fixed, got joint in both",
        ),
        ("search: {widths: {per: layer}}", "search.widths.per: .*'stage' or 'scores', got 'layer'"),
        ("search: {budget: 50}", "search.budget.minimum: .*less than or equal to 1, got 50"),
        (
            "search: {budget: {minimum: 90%, maximum: 20%}}",
            "search.budget: expected minimum ≤ maximum, got 0.9 and 0.2",
        ),
        ("search: {recipe: {learning_rate: [-1]}}", "search.recipe.learning_rate: .*greater than 0, got -1"),
        ("search: {recipe: {learning_rate: {low: 1, high: 0.1}}}", "search.recipe.learning_rate: expected low < high"),
        ("search: {recipe: {learning_rate: {lo: 1, high: 2}}}", "search.recipe.learning_rate.lo: unknown key"),
        (
            "search: {recipe: {weight_decay: {low: 0, high: 1, log: true}}}",
            "search.recipe.weight_decay: .*low > 0 for log",
        ),
        ("search: {recipe: {epochs: {low: 0.5, high: 3}}}", "search.recipe.epochs: .*got 0.5"),
        ("search: {recipe: {epochs: []}}", "search.recipe: epochs: expected at least one choice"),
        ("search: {recipe: {augment: {low: 0, high: 1}}}", "search.recipe: augment: expected a list of choices"),
        ("search: {recipe: {optimizer: [sgd, adam]}}", "search.recipe.optimizer: .*got 'adam'"),
        ("recipe: {learning_rate: fast}", "recipe.learning_rate: .*got 'fast'"),
        ("constraints: {macs: half}", r"constraints.macs.value: .*got 'half'"),
        ("constraints: {macs: -3}", r"constraints.macs.value: .*greater than 0, got -3"),
        ("constraints: {macs: yes}", "constraints.macs: .*got True"),
        ("constraints: {accuracy: 90}", "constraints: accuracy: expected 0 to 1, .* got 90"),
        ("objectives: [accuracy]", "objectives: .*at least 2"),
        (
            "objectives: [macs, params]",
            "objectives: expected distinct names with accuracy among them, got macs, params",
        ),
        ("objectives: [accuracy, macs, macs]", "objectives: expected distinct names"),
        ("objectives: [accuracy, flops]", "objectives.1: .*'latency_ms', got 'flops'"),
        ("resources: {gpus: -1}", "resources.gpus: .*got -1"),
        ("cache_gib: -1", "cache_gib: .*got -1"),
        ("data: 3", "data: .*got 3"),
        (
            "search: {criterion: [l1, dcp], criterion_per: stage, auxiliary: 3}\nauxiliary: {schedule: stagewise}",
            "experiment: search.criterion_per: expected network with schedule 'stagewise', .* got stage",
        ),
        ("1: 2", "1: .*got 1"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(tmp_path, text, message):
    assert re.match(message, fault(tmp_path, text))


def test_a_schedule_without_losses_refuses_nothing(tmp_path):
    asked = "search: {criterion: [l1, dcp], criterion_per: stage}\nauxiliary: {schedule: stagewise}"
    assert load(tmp_path, f"name: x\nmodel: resnet20\n{asked}\n").search.criterion_per == "stage"


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", ".hidden", "-o", "", "a b", "cache", "baselines", "mlflow-artifacts"]
)
def test_a_name_is_a_folder_of_its_own(name):
    with pytest.raises(ExperimentError, match=r"^name: "):
        parse_experiment(SMALL | {"name": name})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected keys and values, got NoneType"),
        (b"[1]", "expected keys and values, got list"),
        (b"a: b: c", "not YAML: mapping values are not allowed here"),
        (b"a: [1", "not YAML: "),
        (b"!!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        (b"name: x\nname: y\n", "not YAML: 'name' stands there twice"),
        (b"search: {trials: 1, trials: 2}", "not YAML: 'trials' stands there twice"),
        (b"\xff\xfe", "not a text file"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_no_experiment_is_told_in_one_line(tmp_path, content, reason):
    file = tmp_path / "experiment.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ExperimentError, match=f"^experiment {re.escape(str(file))}: {re.escape(reason)}") as caught:
        load_experiment(file)
    assert "\n" not in str(caught.value)


def test_a_key_may_be_overridden_through_a_merge(tmp_path):
    text = "name: x\nmodel: m\nrecipe: &r {epochs: 3, batch_size: 8}\nbaseline: {<<: *r, epochs: 5}\n"
    experiment = load(tmp_path, text)
    assert (experiment.recipe.epochs, experiment.baseline.epochs, experiment.baseline.batch_size) == (3, 5, 8)


TREE = parse_experiment(SMALL | {"constraints": {"macs": "50%"}}).model_dump(mode="json")
WORD = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), max_size=5)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda below: st.lists(below, max_size=2) | st.dictionaries(WORD | st.integers(), below, max_size=2),
    max_leaves=4,
)


def places(tree, above=()):
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(list(places(TREE))), junk=JUNK)
def test_whatever_stands_at_a_place_is_read_or_told_in_one_line(place, junk):
    def with_junk(tree, keys):
        return {**tree, keys[0]: with_junk(tree[keys[0]], keys[1:]) if keys[1:] else junk}

    try:
        told = parse_experiment(with_junk(TREE, place)).to_yaml()
    except ExperimentError as error:
        told = str(error) if str(error).startswith(place[0]) and "\n" not in str(error) else ""
    assert told
