"""MLflow sees a sweep once, whole and in order, whatever fails on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution

from pruning import AuxiliaryPlacement, CriterionSpec, ModelSpec, Policy
from search.config import parse_experiment
from search.errors import SweepError
from search.pareto import front
from search.passwords import without_password
from search.results import Metrics, State, TrialRecord
from search.study import create_study
from search.tracking import Tracker, default_uri, serve, sync, tracker, ui_command
from search.tracking.delivery import Delivery
from search.tracking.ledger import Ledger, record_from_json, record_to_json
from search.tracking.outbox import OUTBOX, Outbox, read_lines
from search.tracking.place import set_environment
from search.tracking.position import OFFSET, Position
from search.tracking.runs import LONGEST_PARAM, Runs

set_environment()
from mlflow import MlflowClient  # noqa: E402

BASELINE = {"accuracy": 0.9, "loss": 0.3, "macs": 1000, "params": 100}
WIDTHS = {"layer1.0.conv1": 16, "layer2.0.conv1": 32}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A SQLite store with its tables; making them takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    Runs(default_uri(folder), "none", "none")
    return folder / "mlflow.db"


@pytest.fixture
def storage(tmp_path, empty_store):
    folder = tmp_path / "all sweeps"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder


def experiment(storage, **more):
    tree = {
        "name": "s1",
        "model": "resnet20",
        "storage": str(storage),
        "search": {"trials": 3, "sampler": "tpe"},
        **more,
    }
    found = parse_experiment(tree)
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def dead_uri():
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def trial(number, accuracy=0.8, macs=480, state=State.FINISHED, **more):
    history = tuple(
        Metrics(epoch, accuracy - 0.1 * (2 - epoch), 0.4, macs, 50, None, 2.0 * epoch) for epoch in range(3)
    )
    policy = Policy(
        model=ModelSpec(name="resnet20"),
        network="0" * 16,
        widths={"layer1.0.conv1": 8},
        criterion=CriterionSpec(name="fpgm"),
    )
    given = {"params": {"width.layer1.0.conv1": 8}, "history": history, **more}
    return TrialRecord(number, state, given.pop("params"), policy, **given)


TRIALS = [
    trial(0),
    trial(1, state=State.STOPPED, accuracy=0.7),
    trial(2, state=State.FAILED, history=(), error="fine-tuning: loss is not finite"),
]


def tell(tracker, record):
    tracker.trial_started(replace(record, state=State.RUNNING, history=(), error=None))
    for metrics in record.history:
        tracker.trial_reported(record.number, metrics)
    tracker.trial_ended(record)


def tell_all(found, trials=TRIALS, **options):
    (found.folder / "front.png").write_bytes(b"\x89PNG")
    with Tracker(found.folder, found, **options) as tracker:
        tracker.start(BASELINE, WIDTHS)
        for record in trials:
            tell(tracker, record)
        tracker.sweep_ended("Three trials.", {"png": found.folder / "front.png", "notes/why.txt": "because"})
    return tracker


def runs_of(uri, name="prunesearch"):
    """The sweep's runs by name."""
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(name)
    found = client.search_runs([known.experiment_id]) if known else []
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return client, by_name


def snapshot(uri):
    """Everything in the store but ids: what must not depend on how often and where delivery broke off."""
    client, runs = runs_of(uri)
    content = {}
    for name, run in runs.items():
        points = {
            key: sorted(
                (point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        tags = {
            key: value
            for key, value in run.data.tags.items()
            if key not in ("mlflow.parentRunId", "mlflow.note.content")
        }
        content[name] = (run.info.status, run.info.start_time, run.info.end_time, run.data.params, points, tags)
    return content


def artifact(client, run, path):
    return Path(client.download_artifacts(run.info.run_id, path)).read_text()


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_is_a_parent_with_a_nested_run_for_each_trial(storage):
    found = experiment(storage)
    assert tell_all(found).left == 0
    client, runs = runs_of(default_uri(storage))
    assert set(runs) == {"s1", "trial-000 fpgm 48% MACs", "trial-001 fpgm 48% MACs", "trial-002 fpgm"}
    statuses = {name: (run.info.status, run.data.tags["state"]) for name, run in runs.items()}
    assert statuses == {
        "s1": ("FINISHED", "finished"),
        "trial-000 fpgm 48% MACs": ("FINISHED", "finished"),
        "trial-001 fpgm 48% MACs": ("KILLED", "stopped early"),
        "trial-002 fpgm": ("FAILED", "failed"),
    }
    parent = runs.pop("s1").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    assert runs["trial-002 fpgm"].data.tags["error"] == "fine-tuning: loss is not finite"
    child = runs["trial-000 fpgm 48% MACs"]
    assert child.data.params == {"criterion": "fpgm", "allocation": "searched", "width.layer1.0.conv1": "8"}
    curve = client.get_metric_history(child.info.run_id, "accuracy")
    assert [(point.step, point.value) for point in curve] == [
        (0, pytest.approx(0.6)),
        (1, pytest.approx(0.7)),
        (2, 0.8),
    ]
    shares = {"macs_share", "params_share"}
    assert set(child.data.metrics) == {"accuracy", "loss", "macs", "params", "seconds", *shares}
    assert [child.data.metrics[name] for name in sorted(shares)] == [0.48, 0.5]
    assert Policy.from_json(artifact(client, child, "policy.json")) == TRIALS[0].policy


def test_a_run_says_where_its_auxiliary_losses_sit(storage):
    placement = AuxiliaryPlacement(kind="explicit", positions=(7, "layer3.2"), weight=0.5)
    record = trial(0)
    policy = record.policy.model_copy(update={"auxiliary": placement})
    record = replace(record, policy=policy, params={"auxiliary.count": 2, "auxiliary.position.1of2": 6})
    found = experiment(storage, search={"trials": 1, "auxiliary": {"count": [0, 2], "placement": ["even", "free"]}})
    tell_all(found, [record])
    _, runs = runs_of(default_uri(storage))
    said = {name: value for name, value in runs["trial-000 fpgm 48% MACs"].data.params.items() if "aux" in name}
    assert said == {
        "auxiliary.count": "2",
        "auxiliary.positions": "7, layer3.2",
        "auxiliary.head": "dcp",
        "auxiliary.weight": "0.5",
    }
    asked = runs["s1"].data.params
    assert asked["auxiliary"] == "0, 2, even, free; dcp heads, weight 1.0"
    assert asked["auxiliary.schedule"] == "none"


def test_the_parent_has_the_question_the_progress_and_the_outcome(storage):
    found = experiment(storage, constraints={"params": "80%"})
    tell_all(found)
    client, runs = runs_of(default_uri(storage))
    parent = runs["s1"]
    asked = {"model": "resnet20", "data": "digits", "sampler": "tpe", "trials": "3", "constraints": "params 80%"}
    assert asked.items() <= parent.data.params.items()
    assert parent.data.metrics["baseline_accuracy"] == 0.9
    assert parent.data.metrics["best_accuracy_under_50pct_macs"] == pytest.approx(0.8)
    volumes = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [(point.step, point.value) for point in volumes] == [(step, pytest.approx(0.8 * 0.52)) for step in (1, 2, 3)]
    assert parent.data.tags["version.python"].startswith("3.")
    assert parse_experiment(__import__("yaml").safe_load(artifact(client, parent, "experiment.yaml"))) == found
    assert artifact(client, parent, "groups.csv").splitlines() == [
        "group,channels",
        *(f"{n},{w}" for n, w in WIDTHS.items()),
    ]
    assert artifact(client, parent, "notes/why.txt") == "because"
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/front.png"]
    note, front = parent.data.tags["mlflow.note.content"], runs["trial-000 fpgm 48% MACs"].info.run_id
    assert note.startswith("[Compare the runs of the front](#/compare-runs")
    assert "\n\nThree trials.\n\n" in note
    place, workflow = parent.info.experiment_id, "workflowType=machine_learning"
    assert f"(#/compare-runs?runs=%5B%22{front}%22%5D&experiments=%5B%22{place}%22%5D&{workflow})" in note
    assert f"[trial 0](#/experiments/{place}/runs/{front}?{workflow})" in note
    assert (storage / "mlflow-artifacts").is_dir()


def test_weights_images_and_devices_are_tags(storage):
    found = experiment(storage)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE, WIDTHS, {"data.fingerprint": "abc", "weights.hash": "def"})
        tell(tracker, trial(0, extra={"tune_id": "x1", "device": "NVIDIA H200", "source": "surrogate"}))
        tell(tracker, trial(1, macs=400))
    _, runs = runs_of(default_uri(storage))
    assert {"data.fingerprint": "abc", "weights.hash": "def"}.items() <= runs["s1"].data.tags.items()
    told = {"device": "NVIDIA H200", "source": "surrogate"}
    assert told.items() <= runs["trial-000 fpgm 48% MACs"].data.tags.items()
    assert not {"device", "source", "tune_id"} & set(runs["trial-001 fpgm 40% MACs"].data.tags)


def test_runs_of_the_front_are_tagged_as_it_is_now(storage):
    def fronts():
        tags = [run.data.tags for run in runs_of(default_uri(storage))[1].values()]
        return {tag["prunesearch.trial"]: tag.get("front") for tag in tags if "prunesearch.trial" in tag}

    found = experiment(storage)
    tell_all(found, [trial(0), trial(1, accuracy=0.7)])
    assert fronts() == {"0": "true", "1": None}
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE, WIDTHS)
        tell(tracker, trial(2, accuracy=0.85))
        tell(tracker, trial(3, accuracy=0.6, macs=200))
        tracker.sweep_ended("Longer.", {})
    assert fronts() == {"0": "false", "1": None, "2": "true", "3": "true"}


def test_the_readme_finds_runs_by_their_metrics_params_and_tags(storage, monkeypatch):
    found = experiment(storage)
    dcp = AuxiliaryPlacement(positions=3)
    trials = [trial(0), trial(1, macs=510, accuracy=0.88), trial(2, macs=400, accuracy=0.85), trial(3)]
    changes = {"criterion": CriterionSpec(name="dcp"), "auxiliary": dcp}
    trials[3] = replace(
        trials[3],
        history=(replace(trials[3].history[-1], accuracy=0.75),),
        policy=trials[3].policy.model_copy(update=changes),
    )
    tell_all(found, trials)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "search_runs" in block)
    monkeypatch.chdir(storage.parent)
    storage.rename(storage.parent / "sweeps")
    shown = {}
    exec(example, shown)  # what the README tells its readers to run
    assert list(shown["cheap"]["tags.prunesearch.trial"]) == ["2", "0", "3"]
    assert shown["cheap"]["metrics.accuracy"].is_monotonic_decreasing
    assert list(shown["with_three_losses"]["tags.mlflow.runName"]) == ["trial-003 dcp 48% MACs"]
    assert set(shown["on_the_front"]["tags.prunesearch.trial"]) == {"1", "2"}


def test_measurements_that_were_not_reported_come_with_the_end_of_the_trial(storage):
    found = experiment(storage)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tracker.trial_reported(5, trial(5).history[0])  # of a trial that nobody knows yet
        tracker.trial_ended(trial(5))
        tracker.trial_started(replace(trial(6), state=State.RUNNING, history=()))
        tracker.trial_reported(6, trial(6).history[1])
        tracker.trial_reported(6, replace(trial(6).history[1], seconds=9.0))  # after a worker died
        time.sleep(0.01)  # another millisecond: MLflow would keep the same measurement twice
        tracker.trial_ended(trial(6))
    client, runs = runs_of(default_uri(storage))
    for number in (5, 6):
        curve = client.get_metric_history(runs[f"trial-00{number} fpgm 48% MACs"].info.run_id, "accuracy")
        assert sorted(point.step for point in curve) == [0, 1, 2]


def test_many_long_and_oddly_named_values_fit(storage):
    found = experiment(storage)
    params = {f"width.layer{number}#2": 8 for number in range(150)} | {"recipe.milestones": "x" * 600}
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tell(tracker, trial(0, params=params))
    assert (tracker.left, tracker.problem) == (0, None)
    written = runs_of(default_uri(storage))[1]["trial-000 fpgm 48% MACs"].data.params
    assert written["width.layer149:2"] == "8"
    assert len(written["recipe.milestones"]) == LONGEST_PARAM
    assert len(written) == 153


def test_a_password_in_the_address_is_shown_to_nobody(storage):
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password(default_uri(storage)) == default_uri(storage)
    found = experiment(storage, tracking={"uri": "http://me:secret@127.0.0.1:1"})
    with Tracker(found.folder, found, patience_s=0) as tracker:
        tracker.start(BASELINE)
    sync(found.folder, default_uri(storage))
    client, runs = runs_of(default_uri(storage))
    assert "me:***@127" in artifact(client, runs["s1"], "experiment.yaml")
    assert "secret" not in artifact(client, runs["s1"], "experiment.yaml") + str(runs["s1"].data.tags)


def test_without_tracking_nothing_is_written(storage):
    found = experiment(storage, tracking={"enabled": False})
    tell_all(found)
    assert not (found.folder / OUTBOX).exists()


told = st.tuples(
    st.integers(0, 5),
    st.sampled_from(State),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([True, True, False]),
)


@given(told=st.lists(told, max_size=20))
def test_how_a_sweep_stands_is_known_line_by_line_even_if_trials_end_twice_or_go_on(told):
    ledger, last = Ledger(), {}
    ledger.add({"kind": "start", "experiment": {"objectives": ["accuracy", "params"]}, "baseline": BASELINE})
    for number, state, accuracy, macs, feasible in told:
        record = trial(number, accuracy / 10, 100 * macs, state, feasible=feasible)
        if state is State.FAILED:
            record = replace(record, history=())
        last[number] = record
        ended = [other for other in last.values() if other.state is not State.RUNNING]
        progress = ledger.progress_with(record)
        assert progress.standing.ended.total() == len(ended)
        assert list(progress.standing.front) == front(ended, ("accuracy", "params"))
        cheap = [other.metrics.accuracy for other in ended if other.counts and other.metrics.macs <= 500]
        assert (progress.best and progress.best.metrics.accuracy) == max(cheap, default=None)
        kind = "trial_started" if state is State.RUNNING else "trial_ended"
        ledger.add({"kind": kind, "record": record_to_json(record)})


def test_trials_that_ended_share_what_is_equal_in_them():
    ledger = Ledger()
    ledger.add({"kind": "start", "experiment": {"objectives": ["accuracy", "params"]}, "baseline": BASELINE})
    told = [trial(number, accuracy=0.5 + number / 10) for number in range(3)]
    for record in told:
        ledger.add({"kind": "trial_ended", "record": json.loads(json.dumps(record_to_json(record)))})
    assert list(ledger.records.values()) == told
    first, *others = ledger.records.values()
    for other in others:
        assert other.policy.recipe is first.policy.recipe
        for one, same in ((first.params, other.params), (first.policy.widths, other.policy.widths)):
            assert all(a is b for a, b in zip(one, same, strict=True))


# ── outages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_call_waits_for_mlflow(storage, monkeypatch):
    release = Event()
    monkeypatch.setattr(Delivery, "run", lambda self, keep_going: release.wait())
    found = experiment(storage)
    tracker = tell_all(found, patience_s=0.01)  # would hang here
    assert tracker.left == len(list(read_lines(found.folder / OUTBOX))) == 15
    release.set()


def test_what_a_dead_server_did_not_get_is_synced_exactly_once(storage, dead_uri):
    found = experiment(storage, tracking={"uri": dead_uri})
    tracker = tell_all(found)
    assert tracker.left == 15
    assert tracker.problem == "Connection refused"
    with pytest.raises(SweepError, match=f"MLflow at {dead_uri}: Connection refused; 15 entries wait"):
        sync(found.folder)
    assert sync(found.folder, default_uri(storage)) == 0
    once = snapshot(default_uri(storage))
    assert len(once) == 4
    assert len(once["trial-000 fpgm 48% MACs"][4]["accuracy"]) == 3
    assert sync(found.folder, default_uri(storage)) == 0
    assert snapshot(default_uri(storage)) == once


def test_a_server_that_comes_back_gets_everything_while_the_sweep_runs(storage, monkeypatch):
    monkeypatch.setattr(tracker, "FIRST_PAUSE_S", 0.01)
    original, attempts = Delivery.run, []

    def run(self, keep_going):
        attempts.append(None)
        if len(attempts) < 3:
            raise ConnectionError("server is away")
        return original(self, keep_going)

    monkeypatch.setattr(Delivery, "run", run)
    found = experiment(storage)
    with Tracker(found.folder, found) as told:
        told.start(BASELINE)
        tell(told, trial(0))
        while len(attempts) < 3:
            time.sleep(0.01)
        tell(told, trial(1))
    assert (told.left, told.problem) == (0, None)
    assert len(runs_of(default_uri(storage))[1]) == 3


class CrashError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("crash", [1, 2, 4, 6, 8, 11])
def test_a_crash_before_the_position_is_remembered_leaves_no_trace(storage, tmp_path, empty_store, monkeypatch, crash):
    found = experiment(storage, tracking={"uri": "sqlite:////nowhere/mlflow.db"})
    monkeypatch.setattr(Delivery, "run", lambda self, keep_going: None)
    tell_all(found)
    monkeypatch.undo()
    shutil.copy(empty_store, tmp_path)
    sync(found.folder, default_uri(tmp_path))
    whole = snapshot(default_uri(tmp_path))

    writes, write = [], Position.write

    def crashing(self, offset):
        writes.append(offset)
        if len(writes) == crash:
            raise CrashError
        write(self, offset)

    monkeypatch.setattr(Position, "write", crashing)
    with pytest.raises(CrashError):
        Delivery(found.folder, default_uri(storage)).run()
    monkeypatch.undo()
    assert sync(found.folder, default_uri(storage)) == 0
    assert snapshot(default_uri(storage)) == whole


def test_carrying_everything_again_changes_nothing(storage):
    found = experiment(storage)
    tell_all(found)
    once = snapshot(default_uri(storage))
    (found.folder / OFFSET).unlink()
    assert sync(found.folder) == 0
    assert snapshot(default_uri(storage)) == once


def test_a_run_that_somebody_deleted_holds_nothing_up(storage, caplog):
    found = experiment(storage)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tell(tracker, trial(0))
    delivery = Delivery(found.folder, default_uri(storage))
    delivery.run()
    client, runs = runs_of(default_uri(storage))
    client.delete_run(runs["trial-000 fpgm 48% MACs"].info.run_id)
    outbox = Outbox(found.folder / OUTBOX)
    outbox.append("trial_ended", record=record_to_json(trial(0, accuracy=0.85)))
    outbox.append("trial_ended", record=record_to_json(trial(1)))
    outbox.close()
    delivery.run()
    assert "MLflow refused an entry" in caplog.text
    assert "trial-001 fpgm 48% MACs" in runs_of(default_uri(storage))[1]


# ── interruption and resumption ──────────────────────────────────────────────────────────────────────────────────────


def test_a_resumed_sweep_goes_on_with_the_same_runs(storage, caplog):
    first = experiment(storage)
    with Tracker(first.folder, first) as tracker:
        tracker.start(BASELINE, WIDTHS)
        tell(tracker, trial(0))
        tracker.trial_started(replace(trial(1), state=State.RUNNING, history=()))
        tracker.trial_reported(1, trial(1).history[0])
    _, runs = runs_of(default_uri(storage))
    interrupted = {name: run.info.status for name, run in runs.items()}
    assert interrupted == {"s1": "KILLED", "trial-000 fpgm 48% MACs": "FINISHED", "trial-001 fpgm 48% MACs": "KILLED"}
    ids = {name: run.info.run_id for name, run in runs.items()}

    longer = experiment(storage, search={"trials": 2})
    with Tracker(longer.folder, longer) as tracker:
        tracker.start(BASELINE, WIDTHS)
        tracker.trial_ended(trial(0))  # told again
        tracker.trial_reported(1, trial(1).history[1])
        tracker.trial_ended(trial(1))
        tracker.sweep_ended("Done.", {})
    client, runs = runs_of(default_uri(storage))
    assert {name: run.info.run_id for name, run in runs.items()} == ids
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "refused" not in caplog.text
    assert runs["s1"].data.params["trials"] == "3"  # as first asked: MLflow keeps params
    assert len(client.get_metric_history(ids["s1"], "baseline_accuracy")) == 1
    assert [point.step for point in client.get_metric_history(ids["s1"], "hypervolume")] == [1, 2]
    assert [point.step for point in client.get_metric_history(ids["trial-001 fpgm 48% MACs"], "accuracy")] == [0, 1, 2]


@pytest.mark.parametrize(("lost", "steps"), [(1, [0, 1, 2]), (30, [0, 1])])  # only its break, or some of it
def test_a_line_cut_short_by_a_kill_is_lost_alone(storage, monkeypatch, lost, steps):
    found = experiment(storage)
    with monkeypatch.context() as patched, Tracker(found.folder, found) as tracker:
        patched.setattr(Delivery, "run", lambda self, keep_going: None)
        tracker.start(BASELINE)
        tell(tracker, trial(0))
        tracker.close()
    cut_lines(found, 5, lost)  # start, started, three reports, the last one torn
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tell(tracker, trial(1))
    client, runs = runs_of(default_uri(storage))
    assert set(runs) == {"s1", "trial-000 fpgm 48% MACs", "trial-001 fpgm 48% MACs"}
    curve = client.get_metric_history(runs["trial-000 fpgm 48% MACs"].info.run_id, "accuracy")
    assert [point.step for point in curve] == steps
    assert len(client.get_metric_history(runs["trial-001 fpgm 48% MACs"].info.run_id, "accuracy")) == 3


def test_an_outbox_that_lost_lines_which_mlflow_has_is_carried_again_from_the_first(storage):
    found = experiment(storage)
    tell_all(found)
    cut_lines(found, 5, 1)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
    assert tracker.left == 0
    client, runs = runs_of(default_uri(storage))
    assert {runs[name].info.status for name in ("s1", "trial-000 fpgm 48% MACs")} == {"KILLED"}
    curve = client.get_metric_history(runs["trial-000 fpgm 48% MACs"].info.run_id, "accuracy")
    assert sorted(point.step for point in curve) == [0, 1, 2]


def cut_lines(found, kept, lost):
    path = found.folder / OUTBOX
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept])[:-lost])


def test_two_sweeps_share_a_store_without_sharing_runs(storage):
    for name in ("s1", "s2"):
        found = parse_experiment({"name": name, "model": "resnet20", "storage": str(storage)})
        found.folder.mkdir()
        with Tracker(found.folder, found) as tracker:
            tracker.start(BASELINE)
            tell(tracker, trial(0))
    client = MlflowClient(default_uri(storage))
    runs = client.search_runs([client.get_experiment_by_name("prunesearch").experiment_id])
    parents = {run.info.run_id: run.info.run_name for run in runs if "prunesearch.trial" not in run.data.tags}
    children = [parents[run.data.tags["mlflow.parentRunId"]] for run in runs if run.info.run_id not in parents]
    assert sorted(children) == sorted(parents.values()) == ["s1", "s2"]


def test_a_full_disk_does_not_stop_the_sweep(storage, monkeypatch):
    found = experiment(storage)

    def full(*_):
        raise OSError(28, "No space left on device")

    with Tracker(found.folder, found, patience_s=0) as tracker:
        tracker.start(BASELINE)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            tracker.trial_started(trial(0))
        tell(tracker, trial(1))
    assert "No space left on device" in tracker.problem
    kinds = [line and line["kind"] for line, _ in read_lines(found.folder / OUTBOX)]
    assert kinds == ["start", None, "trial_started", *["trial_reported"] * 3, "trial_ended", "closed"]


def test_what_a_full_disk_or_a_dead_driver_kept_from_the_outbox_is_told_by_the_next(storage):
    found = experiment(storage)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tell(tracker, trial(0))
    running = replace(trial(3), state=State.RUNNING)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tracker.trials_ended([*TRIALS, running])
        tracker.trials_ended([*TRIALS, running])
    lines = [line for line, _ in read_lines(found.folder / OUTBOX)]
    assert [line["record"]["number"] for line in lines if line["kind"] == "trial_ended"] == [0, 1, 2]
    _, runs = runs_of(default_uri(storage))
    assert {run.data.tags["state"] for name, run in runs.items() if name != "s1"} == {record.state for record in TRIALS}


def test_sync_tells_of_trials_that_only_the_journal_knows(storage):
    found = experiment(storage)
    (found.folder / "experiment.yaml").write_text(found.to_yaml())
    study = create_study(found.folder, found)
    asked = study.ask({"width.layer1.0.conv1": IntDistribution(1, 16)})
    asked.set_user_attr("policy", trial(0).policy.to_json())
    for metrics in trial(0).history:
        asked.set_user_attr(f"epoch:{metrics.epoch}", metrics.to_dict())
    study.tell(asked, [0.8, 480])
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
    assert set(runs_of(default_uri(storage))[1]) == {"s1"}
    for _ in range(2):
        assert sync(found.folder) == 0
        client, runs = runs_of(default_uri(storage))
        run = runs["trial-000 fpgm 48% MACs"]
        assert run.info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(run.info.run_id, "accuracy")] == [0, 1, 2]
    assert sum(line["kind"] == "trial_ended" for line, _ in read_lines(found.folder / OUTBOX)) == 1


def test_a_run_does_not_end_before_it_has_begun(storage):
    found = experiment(storage)
    with Tracker(found.folder, found) as tracker:
        tracker.start(BASELINE)
        tell(tracker, trial(0, started=time.time() + 86_400))  # a clock that has jumped
    _, runs = runs_of(default_uri(storage))
    info = runs["trial-000 fpgm 48% MACs"].info
    assert info.start_time <= info.end_time


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sync_says_what_is_missing_or_in_its_way(storage, monkeypatch):
    found = experiment(storage)
    with pytest.raises(SweepError, match=f"expected {OUTBOX} with a sweep's begin, found none"):
        sync(found.folder)
    tell_all(found)
    monkeypatch.setattr(tracker, "LOCK_PATIENCE_S", 0.01)
    with FileLock(found.folder / tracker.LOCK), pytest.raises(SweepError, match="is running, or another sync is"):
        sync(found.folder)
    client, runs = runs_of(default_uri(storage))
    client.delete_experiment(runs["s1"].info.experiment_id)
    with pytest.raises(SweepError, match="experiment 'prunesearch' is deleted; restore it"):
        sync(found.folder)


def test_the_user_interface_listens_on_this_machine_only(storage, tmp_path):
    command = ui_command(default_uri(storage), 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert options["--backend-store-uri"] == default_uri(storage)
    with pytest.raises(SweepError, match="found no runs in it"):
        serve(tmp_path, 5001, print)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SweepError, match=r"port \d+: taken; choose another with --port"):
            serve(storage, other.getsockname()[1], print)


def test_for_a_server_elsewhere_only_its_address_is_said(storage, dead_uri):
    found = experiment(storage, tracking={"uri": dead_uri})
    with Tracker(found.folder, found, patience_s=0) as told:
        told.start(BASELINE)
    said = []
    serve(found.folder, 5000, said.append)
    assert said == [f"MLflow runs already: {dead_uri}"]


def test_importing_the_package_does_not_import_mlflow():
    code = "import search.tracking, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(cut=st.integers(0, 200))
def test_wherever_the_file_is_cut_whole_lines_stay_and_later_ones_are_read(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("outbox") / OUTBOX
    outbox = Outbox(path)
    for number in range(3):
        outbox.append("x", number=number, text="ä\n" * 3)
    outbox.close()
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = data.count(b"\n")
    assert [line["number"] for line, _ in read_lines(path) if line] == list(range(whole))
    again = Outbox(path)
    again.append("x", number=7)
    again.close()
    found = list(read_lines(path))
    # A line of which only the line break is missing is whole again.
    assert [line["number"] for line, _ in found if line] in ([*range(whole), 7], [*range(whole + 1), 7])
    assert found[-1][1] == path.stat().st_size


@given(accuracy=st.floats(0, 1), latency=st.none() | st.floats(0.1, 9), error=st.none() | st.text())
def test_a_record_survives_the_file(accuracy, latency, error):
    metrics = Metrics(3, accuracy, 0.1, 10, 5, latency, 1.5)
    record = trial(4, history=(metrics,), error=error, feasible=False, started=12.5, seconds=3.0)
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record


# ── a real server ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_over_http_everything_arrives_as_in_a_file(storage, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(ui_command(default_uri(storage), port), cwd=tmp_path)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{uri}/health")
                break
            except OSError:
                time.sleep(0.5)
        found = experiment(tmp_path, tracking={"uri": uri})
        told = tell_all(found)
        assert (told.left, told.problem) == (0, None)
        once = snapshot(uri)
        (found.folder / OFFSET).unlink()
        assert sync(found.folder) == 0
        assert snapshot(uri) == once
        client, runs = runs_of(uri)
        assert artifact(client, runs["s1"], "notes/why.txt") == "because"
        assert f"({uri}/#/compare-runs" in runs["s1"].data.tags["mlflow.note.content"]
    finally:
        server.terminate()
        server.wait()
