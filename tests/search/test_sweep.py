import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import yaml
from filelock import FileLock
from processes import session, wait_for

from pruning import build_model, save_weights
from search import driver, launching
from search.driver import resume_sweep, run_or_resume, run_sweep
from search.errors import ExperimentError, SweepError, SweepInterruptedError
from search.prepare import prepare
from search.results import State
from search.study import Proposal
from search.sweep import Sweep
from search.trial import run_trial

HERE = Path(__file__).parent


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("a place")


@pytest.fixture(scope="module")
def finished(storage):
    search = {"trials": 6, "criterion": ["l1", "random"], "allocation": ["searched", "uniform"]}
    return run_sweep(tiny.experiment(storage, search=search), live=False)


def numbers(history):
    return [replace(metrics, seconds=0.0) for metrics in history]


def run_here(sweep, record):
    """Return what a trial measures in this process."""
    seen = []
    run_trial(record.policy, prepare(sweep.experiment), lambda metrics, _: seen.append(metrics))
    return numbers(seen)


def add_trials(folder, count):
    """Make a finished sweep an interrupted one."""
    tree = yaml.safe_load((folder / "experiment.yaml").read_text())
    tree["search"]["trials"] += count
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))


def dominates(one, other):
    return one.accuracy >= other.accuracy and one.macs <= other.macs and one != other


# ── one sweep ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_trial_is_on_record_with_all_its_epochs(finished):
    assert [record.number for record in finished.records] == list(range(6))
    assert {record.state for record in finished.records} == {State.FINISHED}
    for record in finished.records:
        assert [metrics.epoch for metrics in record.history] == [0, 1, 2]
        assert record.policy.criterion.name == record.params["criterion"]
    assert {record.params["allocation"] for record in finished.records} == {"searched", "uniform"}


def test_trials_in_reused_workers_measure_what_they_measure_alone(finished):
    for record in finished.records:
        assert numbers(record.history) == run_here(finished, record)


def test_the_front_is_what_no_trial_dominates(finished):
    last = {record.number: record.metrics for record in finished.records}
    alone = {
        number for number, metrics in last.items() if not any(dominates(other, metrics) for other in last.values())
    }
    assert {record.number for record in finished.front} <= alone
    assert {(last[n].accuracy, last[n].macs) for n in alone} == {
        (record.metrics.accuracy, record.metrics.macs) for record in finished.front
    }


def test_the_folder_holds_the_whole_sweep(finished):
    found = Sweep.load(finished.folder)
    assert found.records == finished.records
    assert found.experiment == finished.experiment
    assert found.baseline == finished.baseline == prepare(finished.experiment).baseline.to_dict()
    assert {"experiment.yaml", "baseline.json", "study.journal", "front.csv", "front.png", "report.html"} <= {
        path.name for path in finished.folder.iterdir()
    }
    drawn = {path.stem for path in (finished.folder / "figures").iterdir()}
    assert drawn == {"widths", "dimensions", "curves", "hypervolume"}
    assert not list(finished.folder.rglob("trial-*.pt"))
    numbers_in_csv = [line.split(",")[0] for line in (finished.folder / "front.csv").read_text().splitlines()[1:]]
    assert numbers_in_csv == [str(record.number) for record in finished.front]


def test_the_front_can_be_written_again(finished):
    before = (finished.folder / "front.csv").read_text()
    assert {path.exists() for path in Sweep.load(finished.folder).draw().values()} == {True}
    assert (finished.folder / "front.csv").read_text() == before


def test_the_summary_says_what_came_out(finished):
    text = finished.summary
    assert text.startswith("6 trials: 6 finished. Baseline: ")
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 2 + len(finished.front)


def test_a_sweep_is_not_run_over_another_and_a_finished_one_not_resumed(finished):
    def content():
        return {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != "sweep.lock"}

    before = content()
    with pytest.raises(SweepError, match=r"^sweep .*tiny: exists; resume it, or give the sweep another name"):
        run_sweep(finished.experiment)
    with pytest.raises(SweepError, match=r"^sweep .*tiny: finished, all 6 trials have ended"):
        resume_sweep(finished.folder)
    assert content() == before


def test_a_job_that_is_started_again_goes_on_where_it_was(tmp_path):
    asked, said = tiny.experiment(tmp_path, search={"trials": 2}), []
    first = run_or_resume(asked, live=False)
    assert len(first.records) == 2
    before = tiny.files(first.folder)
    assert run_or_resume(asked, say=said.append, live=False).records == first.records
    assert said == [f"{first.folder} is finished: all 2 trials have ended"]
    assert tiny.files(first.folder) == before

    add_trials(first.folder, 1)  # a sweep that was extended, and interrupted then
    assert run_or_resume(asked, live=False).records[:2] == first.records
    assert len(Sweep.load(first.folder).records) == 3

    other = tiny.experiment(tmp_path, search={"trials": 2, "seed": 9}, objectives=["accuracy", "params"])
    with pytest.raises(SweepError, match=r"tiny: was run with another objectives, search.seed; give this one another"):
        run_or_resume(other)


def test_a_sweep_that_ends_while_its_folder_is_made_leaves_none(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "make_starts", lambda *_: [Proposal("here", {}, {})])
    monkeypatch.setattr(driver, "enqueue", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tiny.experiment(tmp_path))
    assert not [path for path in tmp_path.iterdir() if "tiny" in path.name]


def test_two_drivers_do_not_share_a_sweep(finished):
    with FileLock(finished.folder / "sweep.lock"), pytest.raises(SweepError, match="is running"):
        resume_sweep(finished.folder)


@pytest.mark.parametrize("missing", ["experiment.yaml", "baseline.json", "widths.json", "study.journal"])
def test_a_folder_without_a_whole_sweep_is_told(finished, tmp_path, missing):
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(SweepError, match=rf"^sweep {copy}: expected .*{missing}"):
        Sweep.load(copy)
    with pytest.raises(SweepError, match=r"^sweep .*: expected a sweep's folder"):
        resume_sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_sweep_that_was_moved_and_renamed_goes_on(finished, tmp_path):
    shutil.copytree(finished.experiment.storage, tmp_path / "elsewhere")
    moved = (tmp_path / "elsewhere" / "tiny").rename(tmp_path / "elsewhere" / "renamed")
    add_trials(moved, 2)
    resumed = resume_sweep(moved, live=False)
    assert resumed.records[:6] == finished.records
    assert [(record.number, record.state) for record in resumed.records[6:]] == [(6, "finished"), (7, "finished")]
    assert numbers(resumed.records[6].history) == run_here(resumed, resumed.records[6])
    assert resumed.experiment.folder == moved
    assert not (tmp_path / "elsewhere" / "tiny").exists()


# ── equal seeds ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_seeds_give_equal_sweeps(storage):
    def outcome(name):
        search = {"trials": 5, "concurrent": 1, "sampler": "tpe", "seed": 4}
        ran = run_sweep(tiny.experiment(storage, name=name, search=search), live=False)
        return [(record.params, numbers(record.history)) for record in ran.records], [r.number for r in ran.front]

    assert outcome("one") == outcome("other")


# ── what goes wrong in trials ────────────────────────────────────────────────────────────────────────────────────────


def test_trials_that_fail_are_told_in_one_line_and_the_others_finish(storage):
    search = {"trials": 6, "recipe": {"learning_rate": [0.05, 0.03, 1e30]}, "seed": 5}
    ran = run_sweep(tiny.experiment(storage, name="fragile", model="tiny:fragile", search=search), live=False)
    errors = set()
    for record in ran.records:
        odd, wild = record.policy.widths["first"] % 2, record.params["recipe.learning_rate"] > 1
        assert record.state == (State.FAILED if odd or wild else State.FINISHED)
        assert "\n" not in (record.error or "")
        errors.add((record.error or "").partition(",")[0] if odd or wild else "")
    assert errors == {"", "RuntimeError: odd widths", "epoch 1"}
    assert all(record.state is State.FINISHED for record in ran.front)
    assert not list(ran.folder.rglob("trial-*.pt"))


def test_a_sweep_without_a_success_is_told(storage):
    wild = tiny.experiment(storage, name="wild", recipe={"learning_rate": 1e30}, search={"trials": 2})
    with pytest.raises(SweepError, match=r"wild: no trial succeeded; 2 failed, the first with: epoch 1, .*finite loss"):
        run_sweep(wild, live=False)
    assert [record.state for record in Sweep.load(storage / "wild").records] == [State.FAILED] * 2


def test_a_sweep_without_a_feasible_trial_is_told(storage):
    strict = tiny.experiment(storage, name="strict", constraints={"accuracy": 0.999}, search={"trials": 2})
    with pytest.raises(SweepError, match="strict: none of 2 trials that finished is within the constraints"):
        run_sweep(strict, live=False)


def mortal(storage, tmp_path, **sections):
    """Return a sweep whose first worker dies in the second epoch of its first trial."""
    model = {"name": "tiny:mortal", "options": {"grave": str(tmp_path / "grave")}}
    weights = str(tmp_path / "w.safetensors")
    experiment = tiny.experiment(storage, name=tmp_path.name, model=model, weights=weights, **sections)
    save_weights(build_model(experiment.model), experiment.weights)
    return experiment


def test_a_trial_whose_worker_dies_goes_on_in_another(storage, tmp_path, capsys):
    ran = run_sweep(mortal(storage, tmp_path, search={"trials": 1}), live=False)
    assert (tmp_path / "grave").exists()
    (record,) = ran.records
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "trial 0: its worker was lost; another one goes on with it"
    assert [line[:15] for line in told[1:]] == ["[1/1] trial 0  "]
    assert record.state is State.FINISHED
    assert numbers(record.history) == run_here(ran, record)


def test_a_trial_whose_workers_die_too_often_fails_and_the_next_runs(storage, tmp_path):
    search = {"trials": 2, "concurrent": 1}
    ran = run_sweep(mortal(storage, tmp_path, search=search, resources={"retries": 0}), live=False)
    assert [record.state for record in ran.records] == [State.FAILED, State.FINISHED]
    assert [metrics.epoch for metrics in ran.records[0].history] == [0, 1]
    assert "died" in ran.records[0].error
    assert "\n" not in ran.records[0].error
    assert Sweep.load(ran.folder).records == ran.records


def as_tune_does(fault, told=None):
    """Raise a fault as Tune does: in words, behind an error of its own."""
    with driver._ended_by_faults(Path("/sweeps/one"), SimpleNamespace(fault=told)):
        try:
            raise fault
        except Exception as error:
            raise RuntimeError("Traceback (most recent call last)") from error


def test_a_full_disk_behind_another_fault_is_told_in_one_line_and_other_faults_are_raised():
    told = r"^/sweeps/one/study.journal: No space left .*; with room again go on with: prunesearch resume /sweeps/one$"
    with pytest.raises(SweepError, match=told):
        as_tune_does(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/sweeps/one/study.journal"))
    for fault in (ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("a bug")):
        with pytest.raises(RuntimeError, match="Traceback"):
            as_tune_does(fault)
    with pytest.raises(SweepInterruptedError, match=r"^database: gone; go on with: prunesearch resume /sweeps/one$"):
        as_tune_does(KeyError("a text of it"), SweepError("database: gone"))


# ── what is refused before a folder is made ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (
            {"constraints": {"macs": "1%"}, "search": {"widths": {"minimum": "50%"}}},
            r"^constraints.macs: expected at least \d+ MACs",
        ),
        (
            {"search": {"allocation": "uniform", "groups": "first", "budget": {"minimum": "1%"}}},
            "^search.budget.minimum: expected",
        ),
    ],
)
def test_limits_that_no_trial_can_meet_are_refused_at_once(storage, sections, reason):
    with pytest.raises(ExperimentError, match=reason):
        run_sweep(tiny.experiment(storage, name="beyond", **sections))
    assert not (storage / "beyond").exists()


@pytest.mark.parametrize("name", ["cpus", "gpus", "memory_gib"])
def test_trials_that_would_wait_for_ever_are_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.setattr(launching.ray, "is_initialized", lambda: False)
    with pytest.raises(ExperimentError, match=rf"^resources.{name}: expected at most [\d.]+ on this machine, got 9999"):
        run_sweep(tiny.experiment(tmp_path, resources={name: 9999}))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:9999"])
def test_an_address_where_nobody_answers_is_refused_at_once(tmp_path, monkeypatch, address):
    monkeypatch.setattr(launching.ray, "is_initialized", lambda: False)
    with pytest.raises(SweepError, match=rf"^--address {address}: expected a Ray cluster, got: "):
        run_sweep(tiny.experiment(tmp_path), address=address)
    assert not any(tmp_path.iterdir())


# ── the driver is stopped ────────────────────────────────────────────────────────────────────────────────────────────


def start_driver(folder, *arguments):
    """Start the command line in a session of its own."""
    with (folder / "out.txt").open("a") as out, (folder / "err.txt").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "search", *map(str, arguments), "--plain"],
            cwd=HERE,  # where `tiny` is
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def ended_in(folder):
    return sum(record.state is not State.RUNNING for record in Sweep.load(folder).records)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_sweep_that_is_interrupted_goes_on_to_what_it_would_have_been(tmp_path):
    experiment = tiny.experiment(
        tmp_path / "a b", recipe={"epochs": 20, "batch_size": 50}, search={"trials": 6, "seed": 2}
    )
    (tmp_path / "tiny.yaml").write_text(experiment.to_yaml())
    folder, out = experiment.folder, tmp_path / "out.txt"
    driver = start_driver(tmp_path, "run", tmp_path / "tiny.yaml")
    wait_for(lambda: "] trial " in out.read_text())
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert driver.wait(60) == 130
    hint = f"sweep {folder}: interrupted; go on with: prunesearch resume '{folder}'"
    assert (tmp_path / "err.txt").read_text().splitlines()[-1] == hint
    wait_for(lambda: not session(driver.pid))

    assert 1 <= ended_in(folder) < 6
    resumed = resume_sweep(folder, live=False)
    assert [(record.number, record.state) for record in resumed.records] == [(n, State.FINISHED) for n in range(6)]
    for record in resumed.records:
        assert numbers(record.history)[-1] == run_here(resumed, record)[-1]
        assert len({metrics.epoch for metrics in record.history}) == len(record.history)
    assert json.loads((folder / "baseline.json").read_text()) == resumed.baseline
