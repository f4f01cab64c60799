"""A study in a database, and many who write to one at the same time, with a PostgreSQL of the test's own."""

import io
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
import traceback
import uuid
from collections import Counter
from dataclasses import replace

import optuna
import pytest
import tiny
from processes import wait_for
from proposals import BASELINE, Driver, Widths, experiment
from rich.console import Console
from servers import PASSWORD, MLflow, PostgreSQL, free_port
from test_secrets import holding
from test_sweep import start_driver

from search import database as module
from search.driver import extend_sweep, resume_sweep, run_or_resume, run_sweep
from search.errors import ExperimentError, SweepError, SweepInterruptedError
from search.progress import LiveView
from search.results import State
from search.searcher import StudySearcher
from search.study import create_study, load_records, open_study, records
from search.sweep import Sweep
from search.tracking import Tracker, serve, sync
from search.tracking.outbox import OUTBOX, first_start
from search.tracking.place import set_environment
from search.watcher import Watcher

set_environment()
from mlflow import MlflowClient  # noqa: E402

from search.tracking.runs import SWEEP_TAG, TRIAL_TAG  # noqa: E402

TOGETHER = 8


@pytest.fixture(scope="module")
def server():
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture
def database(server, monkeypatch):
    """The address of an empty database; its password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return server.create(f"test_{uuid.uuid4().hex}")


@pytest.fixture
def start(tmp_path, database):
    """Opens the searcher of a sweep whose study is in the database, or with `study=None` in its folder."""

    def searcher(trials=30, sampler="random", groups=3, **sections):
        asked = experiment(tmp_path, trials, sampler, **{"study": database, **sections})
        if not asked.folder.exists():
            create_study(asked.folder, asked)
        return StudySearcher(asked.folder, asked, Widths(groups), BASELINE)

    return searcher


def timeless(found):
    """Records without what the clock and Tune put into them."""
    same = {"started": None, "ended": None, "seconds": 0.0, "extra": {}}
    return [replace(it, history=tuple(replace(at, seconds=0.0) for at in it.history), **same) for it in found]


def at_once(work, *arguments):
    """Run something in several processes at the same time; the last argument says which one it is."""
    context = multiprocessing.get_context("fork")
    faults, gate = context.Queue(), context.Barrier(TOGETHER)

    def run(number):
        try:
            gate.wait(60)
            work(*arguments, number)
        except BaseException:
            faults.put(traceback.format_exc())

    processes = [context.Process(target=run, args=(number,)) for number in range(TOGETHER)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert faults.empty(), faults.get()
    assert [process.exitcode for process in processes] == [0] * TOGETHER


# ── many writers: before Ray starts, since they are forks of this process ────────────────────────────────────────────


def run_alone(folder, address, number):
    asked = experiment(folder / str(number), 6, study=address)
    create_study(asked.folder, asked)
    driver = Driver(StudySearcher(asked.folder, asked, Widths(3), BASELINE), seed=number)
    everybody = optuna.storages.get_storage(address)
    for trial in range(6):
        driver.run(1, first=trial)
        assert all(study.n_trials <= 6 for study in optuna.get_all_study_summaries(everybody))
    driver.finish()


def test_sweeps_of_one_name_that_begin_at_once_in_an_empty_database_do_not_meet(tmp_path, database):
    at_once(run_alone, tmp_path, database)
    kept = tmp_path / "journal"
    asked = experiment(kept, 6)
    for number in range(TOGETHER):
        create_study(asked.folder, asked)
        driver = Driver(StudySearcher(asked.folder, asked, Widths(3), BASELINE), seed=number)
        driver.run(6)
        driver.finish()
        alone = experiment(tmp_path / str(number), 6, study=database)
        assert timeless(load_records(alone.folder, alone)) == timeless(load_records(asked.folder, asked))
        shutil.rmtree(kept)
    assert len(optuna.get_all_study_names(database)) == TOGETHER


def ask_and_tell(address, count, number):
    study = optuna.load_study(study_name="shared", storage=address)
    for _ in range(count):
        trial = study.ask()
        width = trial.suggest_int("width", 1, 9)
        trial.set_user_attr("by", number)
        study.tell(trial, [width, number])


def test_drivers_that_share_a_study_of_optuna_get_each_number_once(database):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name="shared", storage=database, directions=["maximize", "minimize"])
    at_once(ask_and_tell, database, 5)
    trials = optuna.load_study(study_name="shared", storage=database).get_trials()
    assert [trial.number for trial in trials] == list(range(5 * TOGETHER))
    assert Counter(trial.user_attrs["by"] for trial in trials) == dict.fromkeys(range(TOGETHER), 5)
    assert all(trial.values == [trial.params["width"], trial.user_attrs["by"]] for trial in trials)


# ── MLflow's store ───────────────────────────────────────────────────────────────────────────────────────────────────


def track(folder, number):
    """Run a sweep whose outbox nobody empties; return its folder, and the points of accuracy in it."""
    asked = experiment(folder / str(number), 3, tracking={"enabled": True, "uri": "http://127.0.0.1:1"})
    create_study(asked.folder, asked)
    searcher = StudySearcher(asked.folder, asked, Widths(3), BASELINE)
    view = LiveView(3, BASELINE, asked.objectives, console=Console(file=io.StringIO()))
    with Tracker(asked.folder, asked, patience_s=0) as tracker:
        tracker.start(BASELINE)
        driver = Driver(searcher, Watcher(searcher, tracker, view), seed=number)
        driver.run(3)
        driver.finish()
    sweep = first_start(asked.folder / OUTBOX)["sweep_id"]
    measured = ((it.number, at) for it in searcher.records() for at in it.history)
    return asked.folder, Counter((sweep, str(trial), at.epoch, at.accuracy) for trial, at in measured)


def deliver(folders, uri, number):
    assert sync(folders[number], uri) == 0


def test_sweeps_that_are_delivered_at_once_are_there_once(tmp_path, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # the machine may be busy
    folders, points = zip(*(track(tmp_path, number) for number in range(TOGETHER)), strict=True)
    server = MLflow(tmp_path, store=database, artifacts=tmp_path / "artifacts")
    try:
        at_once(deliver, folders, server.uri)
        client = MlflowClient(server.uri)
        runs = client.search_runs([client.get_experiment_by_name("prunesearch").experiment_id])
        tags = [(run.info.run_id, run.data.tags[SWEEP_TAG], run.data.tags.get(TRIAL_TAG)) for run in runs]
        found = Counter(
            (sweep, trial, point.step, point.value)
            for run, sweep, trial in tags
            if trial is not None
            for point in client.get_metric_history(run, "accuracy")
        )
    finally:
        server.remove()
    expected = sum(points, Counter())
    kept = {(sweep, trial) for sweep, trial, _, _ in expected} | {(sweep, None) for sweep, *_ in expected}
    assert Counter((sweep, trial) for _, sweep, trial in tags) == Counter(kept)
    assert len(kept) == 4 * TOGETHER
    assert found == expected


def test_a_store_that_refuses_is_told_in_one_line_at_once(tmp_path, database, monkeypatch):
    monkeypatch.delenv("PGPASSWORD")
    asked = experiment(tmp_path, 3, tracking={"enabled": True, "uri": database.replace("me@", f"me:{PASSWORD}@")})
    create_study(asked.folder, asked)
    with Tracker(asked.folder, asked, uri="http://127.0.0.1:1", patience_s=0) as tracker:
        tracker.start(BASELINE)
    began, expected = time.monotonic(), "failed for user .me.; its password is not kept, set MLFLOW_TRACKING_PASSWORD"
    with pytest.raises(SweepError, match=rf"^MLflow at postgresql.*:\*\*\*@.*{expected}; \d+ entries wait$"):
        sync(asked.folder)
    with pytest.raises(SweepError, match=rf"^MLflow at postgresql.*:\*\*\*@.*{expected}$"):
        serve(asked.folder, free_port(), print)
    assert time.monotonic() < began + 30


# ── the same study ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_study_in_a_database_is_the_one_of_the_journal(start, tmp_path, sampler):
    found = []
    for study in ({}, {"study": None}):
        searcher = start(30, sampler, constraints={"macs": "60%"}, **study)
        driver = Driver(searcher)
        driver.run(20)
        searcher = driver.searcher = pickle.loads(pickle.dumps(searcher))  # opens the study again
        driver.run(10, first=20)
        driver.finish()
        found.append(timeless(searcher.records()))
        shutil.rmtree(tmp_path / "sweep")
    assert found[0] == found[1]
    assert len(found[0]) == 30


def test_the_driver_sees_at_every_event_what_everybody_reads(start, database):
    searcher = start(15)
    driver = Driver(searcher)
    asked = searcher._experiment
    name = (asked.folder / "study.name").read_text().strip()
    for number in range(15):
        driver.run(1, first=number)
        study = optuna.load_study(study_name=name, storage=database)
        assert searcher.study.get_trials() == study.get_trials()
        assert searcher.records() == records(study) == load_records(asked.folder, asked)
        assert searcher.study.user_attrs == study.user_attrs


def test_a_driver_has_one_connection_and_readers_leave_none(start, server, database):
    def connections():
        name = database.rpartition("/")[2]
        return server.run(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")[0][0]

    searcher = start()
    searcher.suggest("first")
    asked = searcher._experiment
    readers = [open_study(asked.folder, asked) for _ in range(5)]
    wait_for(lambda: connections() == 1, seconds=10)
    assert [len(reader.get_trials()) for reader in readers] == [1] * 5


def test_an_sqlite_file_will_do(start, tmp_path):
    searcher = start(study=f"sqlite:///{tmp_path / 'study.db'}")
    driver = Driver(searcher)
    driver.run(30)
    driver.finish()
    in_a_file = timeless(searcher.records())
    shutil.rmtree(tmp_path / "sweep")
    driver = Driver(start(study=None))
    driver.run(30)
    driver.finish()
    assert in_a_file == timeless(driver.searcher.records())


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("my database", r"study: expected a database's address such as postgresql://me@host/db, got my database$"),
        ("http://me:secret@host:5000", r"study: expected a database's address .*, got http://me:\*\*\*@host:5000$"),
        ("postgresql://me:secret@host:many/db", r"got postgresql://me:\*\*\*@host:many/db$"),
        ("sqlite:///study.db", r"study: expected a file such as sqlite:////home/me/study.db, got sqlite:///study.db$"),
        ("sqlite://", r"study: expected a file such as sqlite:////home/me/study.db, got sqlite://$"),
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path, address, complaint):
    with pytest.raises(ExperimentError, match=complaint):
        experiment(tmp_path, 4, study=address)


@pytest.mark.parametrize("case", ["nobody there", "wrong password", "no password", "no database", "no driver"])
def test_a_database_that_cannot_be_used_is_told_in_one_line_and_nothing_is_made(database, tmp_path, monkeypatch, case):
    monkeypatch.setenv("HOME", str(tmp_path))  # whose .pgpass would help
    address, said = {
        "nobody there": (f"postgresql://me:{PASSWORD}@127.0.0.1:1/db", "Connection refused"),
        "wrong password": (database.replace("me@", "me:battery@"), 'password authentication failed for user "me"'),
        "no password": (database, "no password supplied; set PGPASSWORD, or write it into ~/.pgpass"),
        "no database": (f"{database}_x", 'database "test_.*_x" does not exist'),
        "no driver": ("mysql://me:battery@host/db", "No module named 'MySQLdb'"),
    }[case]
    if case == "no password":
        monkeypatch.delenv("PGPASSWORD")
    with pytest.raises(SweepError, match=rf"^study \w+(\+psycopg)?://.*: .*{said}$") as told:
        run_sweep(tiny.experiment(tmp_path, study=address), live=False)
    assert "\n" not in str(told.value)
    assert "battery" not in str(told.value)
    assert PASSWORD not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_not_there_any_more_is_told(start, database, server):
    searcher = start()
    asked, name = searcher._experiment, (searcher._folder / "study.name").read_text().strip()
    optuna.delete_study(study_name=name, storage=database)
    with pytest.raises(SweepError, match=rf"^study {database.replace('+', '.')}: expected {name}, found none of that"):
        open_study(asked.folder, asked)
    (asked.folder / "study.name").unlink()
    with pytest.raises(SweepError, match=r"expected study.name, found none$"):
        open_study(asked.folder, asked)


# ── a database that goes away ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def away(server, monkeypatch):
    """Stops the server; it is there again when the test ends, or before."""
    monkeypatch.setattr(module, "PAUSE_S", 0.1)
    stopped = []

    def go(for_s=None):
        server.stop()
        stopped.append(True)
        if for_s is not None:
            stopped[-1] = threading.Timer(for_s, back)
            stopped[-1].start()

    def back():
        if stopped:
            stopped.clear()
            server.start()

    go.back = back
    yield go
    timers = [it for it in stopped if it is not True]
    for timer in timers:
        timer.join()
    back()


def test_a_database_that_comes_back_is_waited_for(start, away, caplog, tmp_path):
    searcher = start()
    driver = Driver(searcher)
    driver.run(10)
    away(for_s=1.5)
    driver.run(20, first=10)
    driver.finish()
    first, last = (record.getMessage() for record in caplog.records if record.name == "search.database")
    assert "Connection refused; waiting up to 300 s" in first
    assert "is back after" in last
    assert PASSWORD not in caplog.text
    found, asked = searcher.records(), searcher._experiment
    assert found == load_records(asked.folder, asked)
    shutil.rmtree(tmp_path / "sweep")
    driver = Driver(start(study=None))
    driver.run(30)
    driver.finish()
    assert timeless(found) == timeless(driver.searcher.records())


def test_a_database_that_stays_away_ends_the_sweep_and_the_next_driver_goes_on(start, away, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    searcher = start()
    driver = Driver(searcher)
    driver.run(10)
    before = searcher.records()
    away()
    for _ in range(2):  # Tune would tell of the failure as that of a trial
        with pytest.raises(SweepError, match=r"^study postgresql.*: .*Connection refused$") as told:
            searcher.on_trial_complete(before[-1].extra["tune_id"], error=True)
    assert searcher.fault is told.value
    away.back()
    with pytest.raises(SweepError, match="Connection refused"):  # what this driver knows may not be so any more
        searcher.suggest("another")
    again = start()
    assert again.records() == before


def test_an_event_in_which_the_database_goes_is_not_there_at_all(start, away):
    class Interrupted(Widths):
        def suggest(self, trial):
            policy = super().suggest(trial)
            trial.set_user_attr("half", True)
            away()
            return policy

    searcher = start()
    searcher.suggest("first")
    before = searcher.records()
    searcher._proposer = Interrupted(3)
    with pytest.raises(SweepError, match=r"^study postgresql\+psycopg://me@127.0.0.1"):
        searcher.suggest("second")
    away.back()
    again = start()
    assert (again.records(), len(again.ledger)) == (before, 1)
    assert again.suggest("first again")["number"] == 0  # Tune does not know it any more
    assert again.suggest("second again")["number"] == 1


# ── whole sweeps ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def undisturbed(local_ray, tmp_path_factory):
    """The trials of the sweep with its study in the folder."""
    asked = tiny.experiment(tmp_path_factory.mktemp("journal"), search={"trials": 8})
    return timeless(run_sweep(asked, live=False).records)


def test_a_sweep_on_a_database_is_the_one_in_its_folder(tmp_path, database, undisturbed, monkeypatch, capfd, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.delenv("PGPASSWORD")
    address = database.replace("me@", f"me:{PASSWORD}@")
    asked = tiny.experiment(tmp_path / "sweeps", search={"trials": 7}, study=address)
    said = []
    sweep = run_sweep(asked, say=said.append, live=False)
    assert timeless(sweep.records) == undisturbed[:7]
    assert run_or_resume(asked, say=said.append, live=False).records == sweep.records
    assert said[-1].endswith("is finished: all 7 trials have ended")
    with pytest.raises(SweepError, match=r"^study .*me:\*\*\*@127.0.0.1.*; set PGPASSWORD, or write it into ~/"):
        Sweep.load(sweep.folder)

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    moved = sweep.folder.rename(tmp_path / "moved")
    assert Sweep.load(moved).records == sweep.records
    assert not (moved / "study.journal").exists()
    longer = extend_sweep(moved, 1, say=said.append, live=False)
    assert timeless(longer.records) == undisturbed
    assert [record.number for record in Sweep.load(moved).front] == [record.number for record in longer.front]

    told = capfd.readouterr()
    assert holding(tmp_path, PASSWORD) == []
    assert PASSWORD not in "\n".join([*said, told.out, told.err, caplog.text])
    assert f"study: {database.replace('me@', 'me:***@')}" in (moved / "experiment.yaml").read_text()


@pytest.mark.chaos
def test_a_sweep_whose_driver_is_killed_and_whose_database_goes_ends_as_undisturbed(
    tmp_path, database, undisturbed, away, monkeypatch
):
    asked = tiny.experiment(tmp_path, search={"trials": 8}, study=database)
    (tmp_path / "tiny.yaml").write_text(asked.to_yaml())

    def ended(count):
        found = load_records(asked.folder, asked) if (asked.folder / "study.name").exists() else []
        return sum(record.state is State.FINISHED for record in found) >= count

    driver = start_driver(tmp_path, "run", tmp_path / "tiny.yaml", "--resume")
    wait_for(lambda: ended(2))
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()

    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    going = threading.Thread(target=lambda: (wait_for(lambda: ended(5)), away()))
    going.start()
    with pytest.raises(SweepInterruptedError, match=r"^study postgresql.*; go on with: prunesearch resume .*/tiny$"):
        resume_sweep(asked.folder, live=False)
    going.join()
    away.back()

    resumed = resume_sweep(asked.folder, live=False)
    assert timeless(resumed.records) == undisturbed
    trials = open_study(asked.folder, asked).get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.state.is_finished() for trial in trials)
    assert resumed.records == Sweep.load(asked.folder).records
