import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
import typer
from mlflow import MlflowClient
from PIL import Image

from pruning import CRITERIA, Policy, build_model, count_memory, evaluate, load_policy
from search import cli
from search.pareto import knee
from search.prepare import prepare, space_of
from search.searcher import StudySearcher
from search.study import create_study
from search.sweep import Sweep
from search.tracking import default_uri
from search.trial import run_trial
from search.units import percent

HERE = Path(__file__).parent
COMMANDS = (
    *("baseline", "run", "resume", "extend", "compare", "front", "best", "apply"),
    *("describe", "diff", "transfer", "export", "register", "fetch"),
    *("bench", "rank", "show-channels", "groups", "ui", "sync", "schema", "names"),
)


def make_sweep(folder, trials=3, error=None):
    """Write the folder of a sweep whose trials ran one after the other in this process, or failed."""
    experiment = tiny.experiment(folder, search={"trials": trials, "seed": 3})
    inputs = prepare(experiment)
    create_study(experiment.folder, experiment)
    (experiment.folder / "baseline.json").write_text(json.dumps(inputs.baseline.to_dict()))
    (experiment.folder / "widths.json").write_text(json.dumps(inputs.groups.widths))
    (experiment.folder / "experiment.yaml").write_text(experiment.to_yaml())
    searcher = StudySearcher(experiment.folder, experiment, space_of(inputs), inputs.baseline.to_dict())
    for name in map(str, range(trials)):
        policy = Policy.from_json(searcher.suggest(name)["policy"])
        outcome = {"error": error} if error else run_trial(policy, inputs, lambda *_: None).metrics.to_dict()
        searcher.on_trial_complete(name, outcome)
    (experiment.folder / "shared.json").write_text("{}")
    return experiment.folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep's folder; only the pictures of its front are written anew."""
    return make_sweep(tmp_path_factory.mktemp("my sweeps"))


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("serch.trials=3", "serch: unknown key; did you mean 'search'?"),
        ("search.criterion=fpgn", "search.criterion: unknown criterion 'fpgn'; did you mean 'fpgm'?"),
        ("search.allocation=[uniforn]", "search.allocation: unknown allocation 'uniforn'; did you mean 'uniform'?"),
        ("model=resnet65", "unknown model 'resnet65'; did you mean 'resnet56'?"),
        ("model=tiny:netwrk", "unknown model 'tiny:netwrk'; did you mean 'tiny:network'?"),
        ("model=untidy:network", "model 'untidy:network': cannot import 'untidy'"),
        ("model.num_classes=7", "model.num_classes: expected 10, the classes of 'digits', got 7"),
        ("data.name=digit", "unknown data source 'digit'; did you mean 'digits'?"),
        ("data.options.sice=8", "unknown option 'sice'; did you mean 'size'?"),
        ("data.options.channels=3", "Network does not run on (1, 3, 8, 8)"),
        ("search.groups=[frist]", "unknown channel group 'frist'; did you mean 'first'?"),
        ("search.groups=paper", "search.groups: no paper's rule is known"),
        ("resources.cpus=999", "resources.cpus: expected at most"),
        ("search.trials", "--set: expected a.b=c, got 'search.trials'"),
        ("weights=none.pth", "none.pth: No such file"),
    ],
)
def test_a_mistake_in_an_experiment_is_one_line(refused, file, setting, reason):
    assert reason in refused("run", file(), "--set", setting)


def test_a_limit_that_no_widths_meet_is_one_line(call, file, tmp_path):
    experiment = file(constraints={"macs": "1%"}, search={"widths": {"minimum": "50%"}})
    code, _, complaint = call("run", experiment)
    assert (code, complaint.count("\n")) == (2, 1)
    assert complaint.startswith("error: constraints.macs: expected at least ")
    assert not (tmp_path / "sweeps" / "tiny").exists()


def test_a_file_that_is_no_experiment_is_one_line(refused, tmp_path):
    assert "nowhere.yaml: No such file or directory" in refused("run", tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("name: x\nmodel: [\nsearch: {}\n")
    assert "broken.yaml: not YAML: " in refused("baseline", tmp_path / "broken.yaml")
    assert f"{tmp_path}/experiment.yaml: No such file" in refused("run", tmp_path)


@pytest.mark.parametrize("kind", ["corrupt", "pickled", "foreign"])
def test_a_checkpoint_that_cannot_be_used_is_one_line(refused, file, tmp_path, kind):
    network, path = build_model(tiny.experiment(tmp_path).model), tmp_path / "w.pth"
    torch.save({"corrupt": network.state_dict(), "pickled": network, "foreign": {"a": torch.zeros(3)}}[kind], path)
    if kind == "corrupt":
        path.write_bytes(path.read_bytes()[:1000])
    reason = {"corrupt": "damaged", "pickled": "holds pickled code", "foreign": "does not fit Network"}[kind]
    assert f"checkpoint {path}: {reason}" in refused("run", file(weights=str(path)))


def test_data_folders_that_are_missing_or_empty_are_one_line(refused, file, tmp_path):
    experiment = file(data={"name": "image_folder", "options": {"root": str(tmp_path / "images")}})
    train = tmp_path / "images" / "train"
    assert f"{train}: expected a folder with one folder a class, got no folder" in refused("run", experiment)
    train.mkdir(parents=True)
    assert f"{train}: expected one folder a class, got none" in refused("run", experiment)
    (train / "cat").mkdir()
    assert f"{train / 'cat'}: expected images" in refused("run", experiment)
    for name in ("cat", "dog"):
        (train / name).mkdir(exist_ok=True)
        for number in range(10):
            Image.new("L", (8, 8)).save(train / name / f"{number}.png")
    assert "model.num_classes: expected 2, the classes of 'image_folder', got 10" in refused("run", experiment)


def test_sweeps_that_cannot_be_run_or_resumed_are_one_line(refused, sweep, file, tmp_path):
    assert "tiny: exists; resume it, or give" in refused("run", sweep)
    assert "tiny: finished, all 3 trials have ended" in refused("resume", sweep)
    for command in ("resume", "front", "best"):
        assert f"sweep {tmp_path}: expected a sweep's folder" in refused(command, tmp_path)
        assert "expected a sweep's folder" in refused(command, file())
    assert "expected mlflow-outbox.jsonl" in refused("sync", sweep)
    assert "found no runs in it" in refused("ui", tmp_path)


@pytest.mark.parametrize("again", [("resume",), ("run", "--resume")])
def test_a_report_that_a_driver_died_at_is_made_by_the_next(call, refused, tmp_path, again):
    folder = make_sweep(tmp_path)
    experiment = folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("enabled: false", "enabled: true"))
    (folder / "shared.json").unlink()
    whole = tmp_path / "asked.yaml"
    whole.write_text(experiment.read_text())
    command, *options = again
    code, out, _ = call(command, folder if command == "resume" else whole, *options, "--plain")
    assert (code, out.splitlines()[0]) == (0, f"{folder}: all 3 trials have ended; what its report lacks is made now")
    assert (folder / "report.html").exists()
    client = MlflowClient(default_uri(tmp_path))
    (known,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([known.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert "finished, all 3 trials have ended" in refused("resume", folder)


def test_a_sweep_without_a_success_is_one_line_and_its_report_says_why(refused, call, tmp_path):
    failed = make_sweep(tmp_path, error="broken")
    assert "no trial finished within the experiment's constraints: 3 failed" in refused("best", failed)
    report = failed / "report.html"
    assert call("front", failed) == (2, "", f"error: sweep {failed}: no trial has succeeded yet; see {report}\n")
    assert "broken" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--max-macs", "0.1%"], "no trial is within the limits"),
        (["--max-macs", "half"], "max_macs: expected a number or a percentage"),
        (["--min-accuracy", "90"], "min_accuracy: expected 0 to 1"),
        (["--max-latency-ms", "5"], "no trial measured latency_ms"),
        (["--trial", "7"], "trial 7: expected one of the sweep's 3, counted from 0"),
        (["--knee", "--trial", "1"], "knee: expected no trial beside it, got trial 1"),
        (["--knee", "--max-macs", "0.1%"], "no trial is within the limits"),
    ],
)
def test_limits_that_no_trial_meets_are_one_line(refused, sweep, tmp_path, arguments, reason):
    assert reason in refused("best", sweep, *arguments, "--output", tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"widths": {"first": 0}}, "policy.json: widths.first: "),
        ({"widths": {"first": 9}}, "widths.first: expected 1 to 8 channels, got 9"),
        ({"widths": {"frist": 3}}, "no channel group 'frist' in this network; did you mean 'first'?"),
        ({"model": {"name": "resnet20"}}, "policy.model: expected "),
        ({"network": "0" * 16}, "made for a network with signature 0000000000000000"),
        ({"width": {"first": 3}}, "width: unknown key; did you mean 'widths'?"),
        (None, "policy.json: No such file"),
        ("{", "policy.json: policy: "),
    ],
)
def test_a_policy_that_does_not_fit_is_one_line(refused, sweep, tmp_path, change, reason):
    if isinstance(change, dict):
        policy = Sweep.load(sweep).records[0].policy.model_dump(mode="json")
        (tmp_path / "policy.json").write_text(json.dumps(policy | change))
    elif change is not None:
        (tmp_path / "policy.json").write_text(change)
    assert reason in refused("apply", tmp_path / "policy.json", sweep, "-o", tmp_path / "pruned")


def test_nothing_is_overwritten(refused, sweep, tmp_path):
    policy, pruned = tmp_path / "policy.json", tmp_path / "pruned"
    policy.write_text(Sweep.load(sweep).records[0].policy.to_json())
    pruned.mkdir()
    assert "policy.json: exists; name another file with --output, or pass --force" in refused(
        "best", sweep, "-o", policy
    )
    assert "pruned: exists; name another folder with --output" in refused("apply", policy, sweep, "-o", pruned)


def test_a_place_that_cannot_be_written_is_one_line(refused, sweep, tmp_path):
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: " in refused("best", sweep, "-o", tmp_path / "file" / "policy.json")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "a.yaml", "--trails", "3"], "No such option: --trails"),
        (["run"], "Missing argument 'EXPERIMENT'"),
        (["run", "a.yaml", "b.yaml"], "unexpected extra argument"),
        (["run", "a.yaml", "--set"], "Option '--set' requires an argument"),
        (["rum", "a.yaml"], "No such command 'rum'"),
        (["names", "criterions"], "criterions"),
        (["ui", ".", "--port", "web"], "'--port'"),
        (["best", ".", "--trial", "first"], "'--trial'"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused, arguments, reason):
    complaint = refused(*arguments)
    assert reason in complaint
    assert complaint.endswith("; see --help\n")


def test_a_bug_shows_its_traceback(monkeypatch, file):
    monkeypatch.setattr(sys, "argv", ["prunesearch", "baseline", str(file())])
    monkeypatch.setattr("search.prepare.load_data", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_is_told_by_exit_code_130(monkeypatch, call, file):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("search.prepare.train_baseline", stop)
    code, _, complaint = call("baseline", file())
    assert (code, complaint) == (130, "interrupted\n")


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(line):
    """Parse a command line without running it."""
    name, *arguments = shlex.split(line, comments=True)
    typer.main.get_command(cli.app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_takes(call, command):
    code, text, complaint = call(command, "--help")
    assert (code, complaint) == (0, "")
    example = re.search(rf"Example: prunesearch ({command} .*?)\n\n", text, re.DOTALL)
    parse(" ".join(example[1].split()))


def test_help_lists_the_commands_also_where_none_is_asked_for(call):
    code, text, complaint = call()
    assert (code, complaint) == (0, "")
    assert set(re.findall(r"^  ([\w-]+)  ", text, re.MULTILINE)) == set(COMMANDS)
    assert call("-h") == (code, text, complaint)


def test_the_command_lines_of_the_readme_are_taken():
    text = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^prunesearch (.+)$", text, re.MULTILINE)
    assert {line.split()[0] for line in lines} == set(COMMANDS)
    for line in lines:
        parse(line)


# ── what the commands do ─────────────────────────────────────────────────────────────────────────────────────────────


def test_names_lists_what_exists(call):
    code, text, _ = call("names", "criteria")
    assert (code, text.splitlines()) == (0, [*CRITERIA.names()])
    assert {"apoz", "ccp", "l1"} <= set(CRITERIA.names())
    for kind, name in (("models", "resnet56"), ("models", "vgg16_bn"), ("allocations", "uniform"), ("data", "digits")):
        assert name in call("names", kind)[1].splitlines()


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_the_names_of_timm_are_listed_by_themselves(call):
    assert "timm/skresnet18" in call("names", "timm")[1].splitlines()


def test_a_baseline_is_told_with_both_accuracies_and_its_cost(call, file, tmp_path):
    code, text, complaint = call("baseline", file())
    assert (code, complaint) == (0, "")
    inputs = prepare(tiny.experiment(tmp_path / "sweeps"))
    test = evaluate(inputs.network(), inputs.data.test).accuracy
    assert f"validation {100 * inputs.baseline.accuracy:.2f} %   test {100 * test:.2f} %" in text
    assert f"{inputs.baseline.macs:,} MACs" in text
    assert "training the baseline" in text
    assert "training the baseline" not in call("baseline", file())[1]


def test_a_users_network_is_found_where_the_user_stands(call, file, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.py").write_text("from tiny import network as narrow\n")
    monkeypatch.chdir(tmp_path / "work")
    assert call("baseline", file(), "--set", "model=mine:narrow")[0] == 0


def test_the_front_is_shown_and_drawn_and_says_what_comes_next(call, sweep):
    code, text, complaint = call("front", sweep)
    assert (code, complaint) == (0, "")
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["trial", "accuracy"]
    assert [line.split()[0] for line in lines[1 : 1 + len(Sweep.load(sweep).front)]] == [
        str(record.number) for record in Sweep.load(sweep).front
    ]
    assert {name for name in ("report.html", "front.png", "front.csv", "figures") if str(sweep / name) in text} == {
        path.name for path in sweep.iterdir() if path.suffix in (".html", ".png", ".csv") or path.name == "figures"
    }
    following = lines[-1].removeprefix("next: prunesearch ").split("   ·   prunesearch ")
    for line in following:  # copied from the terminal, a folder with a space in its name included
        parse(line)
        assert str(sweep) in shlex.split(line)


def test_the_best_trial_is_applied(call, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, complaint = call("best", sweep, "--max-macs", "90%", "--output", "new/policy.json")
    assert (code, complaint) == (0, "")
    assert "policy written to new/policy.json" in text
    policy = load_policy(tmp_path / "new" / "policy.json")
    assert policy in [record.policy for record in Sweep.load(sweep).records]

    code, text, complaint = call("apply", "new/policy.json", sweep, "-o", "pruned", "--set", "latency.repeats=3")
    assert (code, complaint) == (0, "")
    loaded = tiny.load_cut(tmp_path / "pruned")
    assert loaded.policy == policy
    accuracy = evaluate(loaded.model, prepare(Sweep.load(sweep).experiment).data.test).accuracy
    (row,) = [line for line in text.splitlines() if line.startswith("accuracy ")]
    assert percent(accuracy, 2) in row
    (row,) = [line for line in text.splitlines() if line.startswith("weight bytes ")]
    assert f"{count_memory(loaded.model, torch.zeros(1, *tiny.IMAGE_SHAPE)).weight_bytes:,}" in row
    assert text.splitlines()[-1] == "pruned network written to pruned"


def test_one_trial_may_be_taken_and_the_output_replaced(call, sweep, tmp_path):
    output = tmp_path / "policy.json"
    for number in (0, 1):
        assert call("best", sweep, "--trial", number, "-o", output, "--force")[0] == 0
        assert load_policy(output) == Sweep.load(sweep).records[number].policy


def test_the_knee_may_be_taken(call, sweep, tmp_path):
    found = Sweep.load(sweep)
    code, text, _ = call("best", sweep, "--knee", "-o", tmp_path / "policy.json")
    chosen = knee(found.front, found.experiment.objectives)
    assert code == 0
    assert text.startswith(f"Trial {chosen.number} (")
    assert load_policy(tmp_path / "policy.json") == chosen.policy
    dearest = found.front[-1].metrics.macs
    within = [record for record in found.front if record.metrics.macs < dearest]
    assert call("best", sweep, "--knee", "--max-macs", dearest - 1, "-o", tmp_path / "cheap.json")[0] == 0
    assert load_policy(tmp_path / "cheap.json") == knee(within, found.experiment.objectives).policy


# ── as a process ─────────────────────────────────────────────────────────────────────────────────────────────────────


def in_process(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "tiny.yaml", "--set", "serch.trials=3"], "error: serch: unknown key; did you mean 'search'?\n"),
        (["run", "tiny.yaml", "--trails", "3"], "error: No such option: --trails"),
    ],
)
def test_the_process_ends_with_code_2_and_one_line(file, tmp_path, arguments, complaint):
    file()
    before = tiny.files(tmp_path)
    ended = in_process(sys.executable, "-m", "search", *arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(complaint)
    assert ended.stderr.count("\n") == 1
    assert tiny.files(tmp_path) == before


def test_the_command_is_installed_and_its_output_may_be_cut_off():
    command = Path(sys.executable).with_name("prunesearch")
    ended = in_process("bash", "-c", f"{shlex.quote(str(command))} names models | head -n 1")
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
