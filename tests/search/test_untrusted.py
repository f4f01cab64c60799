"""What a file names does not run, what it says where to write or read is not followed, unless the user says so."""

import json
import sys
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import tiny

from pruning import ModelError, load_pruned
from search.driver import run_sweep
from search.reading import LONGEST_LINE, lines_of
from search.servers import LIST, know
from search.tracking import Tracker, sync
from search.tracking.outbox import OUTBOX, read_lines

MODULE = "module_of_a_stranger"
NAME = f"{MODULE}:network"


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """A module that tells when it runs."""
    (tmp_path / "modules").mkdir()
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nfrom tiny import network\n"
    (tmp_path / "modules" / f"{MODULE}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "ran"
    sys.modules.pop(MODULE, None)


@pytest.fixture
def cut(tmp_path):
    """A pruned folder whose policy names that module."""
    folder = tiny.save_cut(tmp_path / "pruned")
    policy = folder / "policy.json"
    policy.write_text(policy.read_text().replace("tiny:network", NAME))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("describe", "policy"),
        ("diff", "policy", "other"),
        ("transfer", "policy", "--num-classes", "3", "-o", "moved.json"),
        ("export", "pruned", "-o", "out"),
        ("register", "pruned", "net"),
        ("apply", "policy", "experiment", "-o", "out"),
    ],
    ids=lambda command: command[0],
)
def test_no_command_runs_what_a_policy_names(cut, refused, file, stranger, tmp_path, command):
    other = tmp_path / "other.json"
    other.write_text((cut / "policy.json").read_text().replace('"first": 5', '"first": 4'))
    places = {"policy": cut / "policy.json", "pruned": cut, "other": other, "experiment": file()}
    complaint = refused(*(places.get(part, tmp_path / part if "." in part else part) for part in command))
    assert not stranger.exists()
    expected = "expected tiny:network as in the experiment" if command[0] == "apply" else f"--trust {NAME}"
    assert expected in complaint or f"got name='{NAME}'" in complaint


def test_it_runs_where_the_user_names_it(cut, stranger, call, file):
    with pytest.raises(ModelError, match=f"'{NAME}': named by a file"):
        load_pruned(cut)
    assert not stranger.exists()
    assert call("describe", cut / "policy.json", file(model=NAME))[0] == 0
    assert stranger.exists()
    assert load_pruned(cut, trusted=[NAME]).policy.model.name == NAME


def test_a_network_without_a_module_needs_no_trust(tmp_path):
    folder = tiny.save_cut(tmp_path / "pruned")
    (folder / "policy.json").write_text((folder / "policy.json").read_text().replace("tiny:network", "resnet20"))
    with pytest.raises(ValueError, match="ResNetCifar"):
        load_pruned(folder)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_of_somebody_else_sends_nothing_from_outside_its_folder(tmp_path, stranger):
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    folder = run_sweep(tiny.experiment(tmp_path / "sweeps", tracking={"enabled": True}), live=False).folder
    (tmp_path / "private.txt").write_text("neither yours nor theirs")
    lines = (folder / OUTBOX).read_text().splitlines(keepends=True)
    (folder / "link.txt").symlink_to(tmp_path / "private.txt")
    for number, line in enumerate(lines):
        tree = json.loads(line)
        if tree["kind"] == "sweep_ended":
            tree["artifacts"] |= {"one": {"path": str(tmp_path / "private.txt")}, "two": {"path": "../../private.txt"}}
            tree["artifacts"] |= {"three": {"path": "link.txt"}, "four": {"text": "a text"}}
            lines[number] = json.dumps(tree) + "\n"
    (folder / OUTBOX).write_text("".join(lines))
    assert sync(folder, uri) == 0
    sent = list((tmp_path / "mlflow-artifacts").rglob("*"))
    assert {"four", "report.html"} <= {path.name for path in sent}
    assert not [path for path in sent if path.is_file() and b"neither yours nor theirs" in path.read_bytes()]


@pytest.fixture
def listening():
    """A server that answers nothing of use, and what it was sent."""
    heard = []

    class Ear(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.headers.get("Authorization"))
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ear)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_password_does_not_go_where_somebodys_sweep_says(tmp_path, monkeypatch, listening, call):
    uri, heard = listening
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "sweep"
    folder.mkdir()
    experiment = tiny.experiment(tmp_path, name="sweep", tracking={"uri": uri})
    (folder / "experiment.yaml").write_text(experiment.to_yaml())
    with Tracker(folder, experiment, uri="http://127.0.0.1:1", patience_s=0) as tracker:  # may take longer to stop
        tracker.start({"accuracy": 0.5, "macs": 10, "params": 10})
    for name, value in (("USERNAME", "me"), ("PASSWORD", "correct-horse")):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    complaint = f"error: sweep {folder}: would show {uri} a password of your environment; if that is meant, set "
    for command in (["sync", folder], ["fetch", "net@champion", "--experiment", folder, "-o", tmp_path / "out"]):
        code, _, told = call(*command)
        assert (code, told) == (2, f"{complaint}MLFLOW_TRACKING_URI={uri}\n")
    assert not any(heard)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}/")
    assert "404" in call("sync", folder)[2]
    assert set(filter(None, heard)) == {f"Basic {b64encode(b'me:correct-horse').decode()}"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    know(uri.replace("://", "://me:***@"))
    assert "404" in call("sync", folder)[2]
    (tmp_path / "configuration" / LIST).write_bytes(b"\xff\x00")
    assert call("sync", folder)[2].startswith(complaint)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    assert "404" in call("sync", folder)[2]


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"1\n" + b"x" * 50 + b"\n2\n" + b"y" * 30)
    with path.open("rb") as file:
        assert list(lines_of(file, most=8)) == [(b"1\n", 2), (None, 51), (b"2\n", 2), (None, 30)]
    with path.open("wb") as file:
        file.truncate(LONGEST_LINE + 10)
        file.seek(0, 2)
        file.write(b'\n{"kind": "closed"}\n')
    assert [line for line, _ in read_lines(path)] == [None, {"kind": "closed"}]
