"""Passwords stay where the user put them: nothing that a sweep writes, sends or says has one."""

import json
import socket

import pytest
import tiny

from search import driver
from search.config import EXPERIMENT, load_experiment
from search.driver import extend_sweep, run_or_resume, run_sweep
from search.passwords import PASSWORD, without_password
from search.tracking import Tracker, store_uri, sync
from search.tracking.outbox import OUTBOX
from search.tracking.position import Position

SECRET = "correct-horse-8c1f"
OTHER = "battery-staple-77d0"


@pytest.fixture
def dead():
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://me:{SECRET}@127.0.0.1:{probe.getsockname()[1]}"


def holding(folder, secret):
    """The files below a folder in which a secret stands."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_leaves_no_secret_anywhere(tmp_path, monkeypatch, capfd, caplog, dead):
    for name in (PASSWORD, "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD"):
        monkeypatch.setenv(name, OTHER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level("DEBUG")
    said = []
    experiment = tiny.experiment(tmp_path / "sweeps", tracking={"uri": dead}, search={"trials": 2})
    folder = run_sweep(experiment, say=said.append, live=False).folder
    extend_sweep(folder, 1, say=said.append, live=False)

    (tmp_path / "store").mkdir()
    assert sync(folder, f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}") == 0
    with pytest.raises(ValueError, match=r"http://me:\*\*\*@127.0.0.1:\d+: Connection refused"):
        sync(folder)

    assert (tmp_path / "store" / "mlflow.db").stat().st_size > 0
    assert list((tmp_path / "store").rglob("report.html"))
    told = capfd.readouterr()
    for secret in (SECRET, OTHER):
        assert holding(tmp_path, secret) == []
        assert secret not in "\n".join([*said, told.out, told.err, caplog.text])
    assert "http://me:***@127.0.0.1" in (folder / EXPERIMENT).read_text()
    assert json.loads((folder / OUTBOX).read_text().splitlines()[0])["uri"].startswith("http://me:***@")


def test_a_kept_address_gets_its_password_from_the_environment(tmp_path, monkeypatch):
    kept = without_password(f"postgresql://me:{SECRET}@host/db")
    monkeypatch.delenv(PASSWORD, raising=False)
    assert store_uri(tmp_path, kept) == kept == "postgresql://me:***@host/db"
    monkeypatch.setenv(PASSWORD, "p@ss/word")
    assert store_uri(tmp_path, kept) == "postgresql://me:p%40ss%2Fword@host/db"
    assert store_uri(tmp_path, "http://host:5000") == "http://host:5000"


@pytest.mark.usefixtures("local_ray")
def test_a_job_that_is_started_again_has_the_password_of_its_file(tmp_path, monkeypatch, dead):
    seen = []

    def tracker(*args, uri, **options):
        seen.append(uri)
        return Tracker(*args, uri=uri, patience_s=0, **options)

    monkeypatch.setattr(driver, "Tracker", tracker)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    experiment = tiny.experiment(tmp_path, tracking={"uri": dead}, search={"trials": 1})
    path = run_or_resume(experiment, live=False).folder / EXPERIMENT
    path.write_text(path.read_text().replace("trials: 1", "trials: 2"))  # as if it had been extended, and interrupted
    assert len(run_or_resume(experiment, live=False).records) == 2
    assert seen == [dead, dead]
    assert holding(tmp_path, SECRET) == []


def test_the_users_own_file_keeps_its_password(tmp_path, dead):
    path = tmp_path / "mine.yaml"
    path.write_text(tiny.experiment(tmp_path, tracking={"uri": dead}).to_yaml())
    assert load_experiment(path).tracking.uri == dead


def test_another_password_is_no_other_store(tmp_path):
    one, other = (Position(tmp_path, f"http://me:{word}@host", "sweep") for word in (SECRET, OTHER))
    one.write(0)
    assert one._store == other._store != Position(tmp_path, "http://me:x@elsewhere", "sweep")._store


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:p@ss@host:5000/x", "http://me:***@host:5000/x"),
        ("https://:word@host", "https://:***@host"),
        ("https://token@host/x and http://***@host", "https://***@host/x and http://***@host"),
        ("postgresql+psycopg2://me:pa/ss?w@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("mysql://host/db?user=me&password=word&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("http://127.0.0.1:5000/#/runs/a@b", "http://127.0.0.1:5000/#/runs/a@b"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("no http://a:b@c and http://d:e@f/g:h@i", "no http://a:***@c and http://d:***@f/g:h@i"),
    ],
)
def test_addresses_are_shown_without_passwords(address, shown):
    assert without_password(address) == shown
