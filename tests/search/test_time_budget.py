"""A sweep's time: how it is written, counted across interruptions, and what it ends."""

import io
import itertools
import shutil
import time
from types import SimpleNamespace

import optuna
import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search.searcher import Searcher
from rich.console import Console

from pruning import ModelSpec, Policy, Recipe
from search import running_time
from search.config import parse_experiment
from search.driver import resume_sweep, run_sweep
from search.errors import ExperimentError, SweepError
from search.progress import LiveView
from search.results import Metrics, State, TrialRecord
from search.running_time import RunningTime, running_seconds
from search.searcher import StudySearcher
from search.sections import written_duration
from search.study import create_study
from search.sweep import Sweep

# ── how it is written ────────────────────────────────────────────────────────────────────────────────────────────────


def budget(value):
    tree = {"name": "sweep", "model": "resnet20", "search": {"time_budget": value}}
    return parse_experiment(tree).search.time_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("45s", 45), ("1.5h", 5400), (" 10 m ", 600), (30, 30), ("30", 30), (None, None)],
)
def test_times_are_read_as_seconds(text, seconds):
    assert budget(text) == seconds


@pytest.mark.parametrize("text", ["2 hours", "1h30m", "-1h", "h", "1d", ""])
def test_what_is_no_time_is_told_by_its_place(text):
    expected = f"^search.time_budget: expected a time like 2h, 90m, 45s, or seconds, got '{text}'$"
    with pytest.raises(ExperimentError, match=expected):
        budget(text)


@pytest.mark.parametrize("value", [0, "0s", -5, float("inf")])
def test_a_time_is_above_zero_and_ends(value):
    with pytest.raises(ExperimentError, match=r"^search.time_budget: expected "):
        budget(value)


@given(st.integers(1, 10**6))
def test_a_written_time_is_read_as_it_was(seconds):
    assert budget(written_duration(seconds)) == seconds


def test_times_are_written_short():
    assert [written_duration(seconds) for seconds in (7200.0, 5400.0, 45, 0.5)] == ["2h", "90m", "45s", "0.5s"]


# ── the clock ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told: `clock.now += 5`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(running_time, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_counts_in_runs_and_not_between_them(clock):
    study, spent = optuna.create_study(), 0.0
    for seconds in (10, 25, 5):
        run = RunningTime(60)
        run.begin(study)
        assert run.left == 60 - spent
        clock.now += seconds
        run.keep(study)
        spent += seconds
        assert run.left == 60 - spent
        clock.now += 7  # lost in a crash
        clock.now += 10_000
    assert running_seconds(study) == spent
    clock.now += 100
    assert run.left == 0


def test_without_a_budget_nothing_is_counted(clock):
    study, run = optuna.create_study(), RunningTime(None)
    run.begin(study)
    clock.now += 5
    run.keep(study)
    assert (run.left, study.user_attrs) == (None, {})


# ── what is proposed ─────────────────────────────────────────────────────────────────────────────────────────────────


class OneWidth:
    conditional = False

    def suggest(self, trial):
        widths = {"conv1": trial.suggest_int("width", 1, 16)}
        return Policy(model=ModelSpec(name="resnet20"), network="f" * 16, widths=widths, recipe=Recipe(epochs=1))


@pytest.fixture
def start(tmp_path):
    """Starts a sweep of ten trials in a minute, or goes on with it after a crash."""
    asked = parse_experiment(
        {"name": "s", "model": "resnet20", "search": {"trials": 10, "time_budget": "60s", "sampler": "random"}}
    )
    create_study(tmp_path, asked)
    return lambda: StudySearcher(tmp_path, asked, OneWidth(), {"accuracy": 0.9, "macs": 1000})


def finish(searcher, name):
    metrics = Metrics(1, 0.9, 0.1, macs=500, params=5, seconds=1.0)
    searcher.on_trial_complete(name, metrics.to_dict())


def test_nothing_is_proposed_when_the_time_is_up_and_what_runs_goes_on(start, clock):
    searcher = start()
    assert searcher.suggest("a")["number"] == 0
    clock.now += 40
    assert searcher.suggest("b")["number"] == 1
    clock.now += 20
    assert searcher.suggest("c") == Searcher.FINISHED
    clock.now += 1000
    finish(searcher, "a")
    finish(searcher, "b")
    assert searcher.suggest("d") == Searcher.FINISHED
    assert [record.state for record in searcher.records()] == [State.FINISHED] * 2
    assert running_seconds(searcher.study) == 1060


def test_a_sweep_that_was_interrupted_has_what_is_left_of_its_time(start, clock):
    searcher = start()
    searcher.suggest("a")
    clock.now += 30
    searcher.on_trial_result("a", Metrics(0, 0.5, 0.5, macs=500, params=5).to_dict())
    clock.now += 10_000
    searcher = start()
    assert searcher.suggest("a2")["number"] == 0
    assert searcher.time.left == 30
    clock.now += 29
    assert searcher.suggest("b")["number"] == 1
    clock.now += 1
    assert searcher.suggest("c") == Searcher.FINISHED


def test_trials_that_a_crash_cut_off_go_on_after_the_time(start, clock):
    searcher = start()
    searcher.suggest("a")
    clock.now += 59
    searcher.suggest("b")
    clock.now += 5
    finish(searcher, "a")
    searcher = start()
    assert searcher.suggest("b2")["number"] == 1
    assert searcher.suggest("c") == Searcher.FINISHED


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(left):
    console = Console(record=True, width=100, height=40, force_terminal=True, file=io.StringIO())
    view = LiveView(24, {"accuracy": 0.9, "macs": 1e6}, ("accuracy", "macs"), time_left=lambda: left, console=console)
    console.print(view.panel())
    return console.export_text()


def test_the_panel_shows_the_time_that_is_left():
    assert "time left 1m30s" in shown(90.0)
    assert "time is up" in shown(0.0)
    assert "time" not in shown(None)


def test_no_sweep_is_said_to_run_longer_than_its_time(monkeypatch):
    ticks = itertools.count(0, 50)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    policy = Policy(model=ModelSpec(name="resnet20"), network="f", widths={})
    ended = TrialRecord(0, State.FINISHED, {}, policy, (Metrics(1, 0.5, 0.5, macs=10, params=1),))
    for left, eta in ((20.0, "ETA 20 s  time left 20 s"), (None, "ETA 19m10s")):
        view = LiveView(24, {"accuracy": 0.9, "macs": 1e6}, ("accuracy", "macs"), time_left=lambda left=left: left)
        view._earlier, view._began = 0, time.monotonic()
        view._standing = view._standing.plus([ended])
        assert " ".join(view._summary()).endswith(eta.replace("  ", " "))


# ── one sweep ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ended(local_ray, tmp_path_factory):
    said = []
    search = {"trials": 1000, "concurrent": 1, "time_budget": "3s"}
    ran = run_sweep(tiny.experiment(tmp_path_factory.mktemp("here"), search=search), say=said.append, live=False)
    return ran, said


def test_time_ends_a_sweep_and_nothing_that_runs(ended):
    ran, said = ended
    assert 1 <= len(ran.records) < 1000
    assert {record.state for record in ran.records} == {State.FINISHED}
    assert ran.front
    told = f"its time of 3s was up after {len(ran.records)} of 1000 trials"
    assert told in said
    assert f"{len(ran.records)} trials: {len(ran.records)} finished; {told}. Baseline: " in ran.summary
    assert Sweep.load(ran.folder) == ran


def test_a_sweep_that_ended_by_its_time_is_finished(ended):
    ran, _ = ended
    told = r"tiny: finished, its time of 3s was up after \d+ of 1000 trials; add some with: prunesearch extend .*tiny "
    with pytest.raises(SweepError, match=told):
        resume_sweep(ran.folder)


def test_a_sweep_whose_time_is_not_up_goes_on(ended, tmp_path):
    ran, _ = ended
    copy = shutil.copytree(ran.experiment.storage, tmp_path / "copy") / "tiny"
    tree = yaml.safe_load((copy / "experiment.yaml").read_text())
    tree["search"] |= {"time_budget": "1h", "trials": len(ran.records) + 1}
    (copy / "experiment.yaml").write_text(yaml.safe_dump(tree))
    assert not Sweep.load(copy).is_finished
    resumed = resume_sweep(copy, live=False)
    assert len(resumed.records) == len(ran.records) + 1
    assert not resumed.time_is_up
    assert resumed.running_seconds > ran.running_seconds
    with pytest.raises(
        SweepError, match=rf"tiny: finished, all {len(ran.records) + 1} trials have ended; add some with: "
    ):
        resume_sweep(copy)
