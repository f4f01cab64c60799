"""What is registered comes back as it was, or not at all."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import IMAGE_SHAPE, save_cut

from pruning import PRUNED_FILES, UnknownNameError, count_cost, hash_weights
from search import model_registry
from search.errors import RegistryError
from search.model_registry import Store
from search.model_registry.checksums import SUMS, check_sums, write_sums
from search.model_registry.registering import DIGEST
from search.model_registry.store import Reference, check_name
from search.tracking import default_uri, ui_command
from search.tracking.place import set_environment
from search.tracking.runs import Runs

set_environment()
import mlflow  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

fetch = partial(model_registry.fetch, trusted=tiny.TRUSTED)
register = partial(model_registry.register, trusted=tiny.TRUSTED)
PICKLES = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """No pickle may be read, no server is waited for, and MLflow knows no store but the one that it is told."""
    monkeypatch.setenv(PICKLES, "false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_cut(tmp_path_factory.mktemp("networks") / "pruned")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A SQLite store with its tables; making them takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    Runs(default_uri(folder), "prunesearch", "none")
    return folder


@pytest.fixture
def new_store(tmp_path, empty_store):
    """A store of one's own."""
    (tmp_path / "all sweeps").mkdir()
    shutil.copy(empty_store / "mlflow.db", tmp_path / "all sweeps")
    return Store(default_uri(tmp_path / "all sweeps"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, saved, empty_store):
    """A store that has versions 1 and 2 of `net`; only read."""
    folder = tmp_path_factory.mktemp("sweeps")
    shutil.copy(empty_store / "mlflow.db", folder)
    found = Store(default_uri(folder))
    assert [register(saved, "net", found, alias=alias).version for alias in ("old", "champion")] == [1, 2]
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def client_of(store):
    return MlflowClient(store.uri)


def artifacts(store, name="net", version=1):
    """The folder in which a SQLite store keeps a version."""
    place = client_of(store).get_model_version_download_uri(name, str(version))
    return Path(unquote(urlparse(place).path))


# ── there and back ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reference", ["net@champion", "net/1"])
def test_a_network_comes_back_bit_for_bit(store, saved, tmp_path, reference):
    fetched = fetch(reference, tmp_path / "deep" / "again", store)
    assert contents(tmp_path / "deep" / "again") == contents(saved)
    before, after = tiny.load_cut(saved), tiny.load_cut(fetched.folder)
    assert (after.policy, after.kept, after.image_shape) == (before.policy, before.kept, before.image_shape)
    images = torch.randn(5, *IMAGE_SHAPE)
    with torch.no_grad():
        assert torch.equal(after.model(images), before.model(images))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert (fetched.name, fetched.version) == ("net", 2 if "@" in reference else 1)


def test_what_is_known_of_the_network_stands_in_its_tags(store, saved):
    pruned, found = tiny.load_cut(saved), client_of(store).get_model_version("net", "2")
    cost = count_cost(pruned.model, torch.zeros(1, *IMAGE_SHAPE))
    digest = found.tags.pop(DIGEST)
    assert found.tags == {
        "model": "tiny:network",
        "policy": pruned.policy.fingerprint,
        "weights": hash_weights(pruned.model.state_dict()),
        "macs": str(cost.macs),
        "params": str(cost.params),
    }
    assert len(digest) == 64
    assert hashlib.sha256((artifacts(store, version=2) / SUMS).read_bytes()).hexdigest() == digest
    full = count_cost(tiny.network(), torch.zeros(1, *IMAGE_SHAPE)).macs
    assert found.description == f"tiny:network cut to {100 * cost.macs / full:.1f} % of its MACs by l1"


def test_mlflow_alone_loads_the_network_without_pickles_for_batches_of_any_size(store, saved, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    program = mlflow.pytorch.load_model("models:/net@champion")
    images = torch.randn(5, *IMAGE_SHAPE)
    with torch.no_grad():
        assert torch.equal(program(images), tiny.load_cut(saved).model(images))
        assert torch.equal(program(images[:1]), tiny.load_cut(saved).model(images[:1]))
    about = mlflow.models.get_model_info("models:/net/2")
    assert [(spec.type.name, spec.shape) for spec in about.signature.inputs] == [("float32", (-1, *IMAGE_SHAPE))]
    assert about.metadata["policy"] == tiny.load_cut(saved).policy.fingerprint
    example = mlflow.models.Model.load("models:/net/2").load_input_example("models:/net/2")
    assert (example.shape, str(example.dtype)) == ((2, *IMAGE_SHAPE), "float32")
    served = mlflow.pyfunc.load_model("models:/net/2").predict(example)
    assert served.shape == (2, 10)


def test_the_files_of_a_version_can_be_checked_by_hand(store):
    ended = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=artifacts(store), check=False)
    assert ended.returncode == 0
    listed = {line.split("  ")[1] for line in (artifacts(store) / SUMS).read_text().splitlines()}
    assert {f"pruned/{name}" for name in PRUNED_FILES} | {"data/model.pt2", "MLmodel"} <= listed
    requirements = (artifacts(store) / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}\n" in requirements


def test_an_alias_moves_to_the_version_that_is_registered_with_it(new_store, tmp_path):
    one, other = save_cut(tmp_path / "one"), save_cut(tmp_path / "other", {"first": 3})
    assert register(one, "net", new_store, alias="champion").version == 1
    assert register(other, "net", new_store, alias="champion").version == 2
    assert register(one, "net", new_store).version == 3
    assert client_of(new_store).get_registered_model("net").aliases == {"champion": 2}
    fetch("net@champion", tmp_path / "again", new_store)
    assert contents(tmp_path / "again") == contents(other)


def test_the_sweeps_run_that_tried_the_policy_is_linked(new_store, saved):
    policy = tiny.load_cut(saved).policy
    runs = Runs(new_store.uri, "another", "sweep")
    parent = runs.ensure(None, "s1", 1, {})
    ids = [runs.ensure(number, f"trial {number}", number, {"policy": policy.fingerprint}) for number in (1, 2, 3)]
    for run_id, accuracy in zip(ids, (0.5, 0.75, 0.9), strict=True):
        runs.log(run_id, metrics=[("accuracy", accuracy - 0.1, 1, 0), ("accuracy", accuracy, 2, 1)])
    runs.end(ids[0], "FINISHED", 9)
    runs.end(ids[1], "FINISHED", 9)  # the third still runs
    before = client_of(new_store).get_run(ids[1])
    said = []
    made = register(saved, "net", new_store, say=said.append)
    assert (made.run_id, made.facts["validation_accuracy"]) == (ids[1], "0.7500")
    assert said[0].endswith("as of run 'trial 2'")
    client = client_of(new_store)
    found, after = client.get_model_version("net", "1"), client.get_run(ids[1])
    assert found.run_id == ids[1]
    assert after.info.to_proto() == before.info.to_proto()  # neither revived nor ended anew
    assert [output.model_id for output in after.outputs.model_outputs] == [found.source.removeprefix("models:/")]
    assert client.get_logged_model(found.source.removeprefix("models:/")).experiment_id == runs.experiment_id
    assert parent not in ids


def test_mlflows_own_settings_are_as_found(new_store, saved, tmp_path, monkeypatch):
    assert not mlflow.is_tracking_uri_set()
    monkeypatch.setenv(PICKLES, "true")
    register(saved, "net", new_store)
    fetch("net/1", tmp_path / "again", new_store)
    assert not mlflow.is_tracking_uri_set()
    assert os.environ[PICKLES] == "true"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    with pytest.raises(RegistryError):
        fetch("net@none", tmp_path / "other", new_store)
    assert mlflow.get_tracking_uri() == "sqlite:///mine.db"


# ── files that are not what was registered ───────────────────────────────────────────────────────────────────────────


def swap_weights(folder):
    path = folder / "pruned" / "weights.safetensors"
    weights = load_file(path)
    save_file({**weights, "classifier.bias": weights["classifier.bias"] + 1}, path)


def add_pickle(folder):
    torch.save(torch.nn.Linear(2, 2), folder / "data" / "model.pth")
    (folder / "data" / "pickle_module_info.txt").write_text("pickle")


def add_code(folder):
    """A module that MLflow would import for the name of the pickle module."""
    add_pickle(folder)
    (folder / "code").mkdir()
    (folder / "code" / "of_a_stranger.py").write_text("import os; os.environ['RAN'] = 'yes'")
    (folder / "data" / "pickle_module_info.txt").write_text("of_a_stranger")
    about = folder / "MLmodel"
    about.write_text(about.read_text().replace("code: null", "code: code").replace("code: ''", "code: code"))


def add_link(folder):
    (folder / "more").symlink_to("/etc/hostname")


def add_file(folder):
    (folder / "pruned" / "setup.py").write_text("")


DAMAGES = {
    "pruned/weights.safetensors is changed": swap_weights,
    "pruned/kept.json is missing": lambda folder: (folder / "pruned" / "kept.json").unlink(),
    "data/model.pt2 is changed": lambda folder: (folder / "data" / "model.pt2").write_bytes(b"PK"),
    "data/model.pth is not in the list": add_pickle,
    "SHA256SUMS is changed": lambda folder: (swap_weights(folder), write_sums(folder)),
    "SHA256SUMS is missing": lambda folder: (folder / SUMS).unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_file_that_is_not_what_was_registered_is_named_and_nothing_stays(new_store, saved, tmp_path, reason):
    register(saved, "net", new_store)
    DAMAGES[reason](artifacts(new_store))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RegistryError, match=f"^net/1: {reason}; not what was registered"):
        fetch("net/1", tmp_path / "deep" / "again", new_store)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def resign(store, folder):
    client_of(store).set_model_version_tag("net", "1", DIGEST, write_sums(folder))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swap_weights, r"net/1: the logged program: differs from the network by "),
        (add_pickle, r"net/1: expected model.pt2 in data, got others: model.pth, pickle_module_info.txt"),
        (add_code, r"net/1: expected a network without code, got one with some"),
        (add_link, r"^MLflow at sqlite:.* failures occurred while downloading"),
        (add_file, r"in pruned, got others: setup.py"),
    ],
)
def test_even_with_right_hashes_the_program_has_to_give_what_the_network_gives(
    new_store, saved, tmp_path, monkeypatch, damage, reason
):
    register(saved, "net", new_store)
    damage(artifacts(new_store))
    resign(new_store, artifacts(new_store))
    monkeypatch.setenv(PICKLES, "true")  # whatever else the user reads
    monkeypatch.delenv("RAN", raising=False)
    with pytest.raises(RegistryError, match=reason):
        fetch("net/1", tmp_path / "again", new_store)
    assert "RAN" not in os.environ
    assert not (tmp_path / "again").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["all sweeps"]


def test_artifacts_that_are_gone_are_one_line(new_store, saved, tmp_path):
    register(saved, "net", new_store)
    shutil.rmtree(artifacts(new_store))
    with pytest.raises(RegistryError, match=r"^MLflow at sqlite://"):
        fetch("net/1", tmp_path / "again", new_store)
    assert [path.name for path in tmp_path.iterdir()] == ["all sweeps"]


def test_a_version_that_somebody_else_logged_is_refused(new_store, tmp_path):
    client = client_of(new_store)
    client.create_registered_model("net")
    client.create_model_version("net", str(tmp_path))
    with pytest.raises(
        RegistryError, match="net/1: expected a network that `prunesearch register` logged, got another"
    ):
        fetch("net/1", tmp_path / "again", new_store)


@pytest.mark.parametrize("name", ["a file", "below/a file"])
def test_hashes_are_of_all_files_and_lines_are_as_sha256sum_writes_them(tmp_path, name):
    (tmp_path / "below").mkdir()
    (tmp_path / name).write_text("text")
    digest = write_sums(tmp_path)
    expected = subprocess.run(["sha256sum", name], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / SUMS).read_text() == expected
    check_sums(tmp_path, digest, "here")
    (tmp_path / name).write_text("other")
    with pytest.raises(RegistryError, match=f"here: {name} is changed"):
        check_sums(tmp_path, digest, "here")


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nett@champion", "unknown registered network 'nett'; did you mean 'net'?"),
        ("net@champ", "net: no alias 'champ'; there are: champion (version 2), old (version 1)"),
        ("net/3", "net: no version 3; there are: 1, 2"),
        ("net", "network: expected NAME@ALIAS or NAME/VERSION, such as digits/3, got 'net'"),
        ("net/latest", "network: expected NAME@ALIAS or NAME/VERSION"),
        ("net' or name != '@champion", "network: expected NAME@ALIAS or NAME/VERSION"),
    ],
)
def test_a_network_that_is_not_there_is_one_line(refused, store, tmp_path, reference, reason):
    assert reason in refused("fetch", reference, "--uri", store.uri, "-o", tmp_path / "again")


def test_an_output_that_exists_is_refused_before_any_work(refused, tmp_path):
    (tmp_path / "again").mkdir()
    uri = default_uri(tmp_path / "nowhere")
    assert "again: exists; name another folder with --output" in refused(
        "fetch", "net/1", "--uri", uri, "-o", tmp_path / "again"
    )


def test_a_store_that_is_not_there_is_not_made(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = f"MLflow at {tmp_path}/sweeps/mlflow.db: no such file; name the store with --uri or --experiment"
    assert place in refused("fetch", "net/1", "-o", tmp_path / "again")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a/b"], "name: expected one without / : @, quotes and blanks, got 'a/b'"),
        (["net@champion"], "name: expected one without"),
        (
            ["net", "--alias", "v3"],
            "--alias: expected letters, digits, - and _, but neither 'latest' nor 'v1', got 'v3'",
        ),
        (["net", "--alias", "Latest"], "--alias: expected letters"),
        (["net", "--alias", "my best"], "--alias: expected letters"),
        (["net", "--experiment", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_names_that_cannot_be_are_one_line(refused, saved, arguments, reason):
    assert reason in refused("register", saved, *arguments)


@pytest.mark.parametrize(("name", "alias"), [("net", None), ("resnet56-cifar.10", "champion"), ("n", "Best_2")])
def test_names_that_can_be_are_found_again(name, alias):
    check_name(name, alias)
    reference = f"{name}@{alias}" if alias else f"{name}/12"
    assert str(Reference.parse(reference)) == reference


def test_a_folder_without_a_pruned_network_is_one_line(refused, tmp_path):
    assert f"{tmp_path}: expected a pruned network as `prunesearch apply` writes it" in refused(
        "register", tmp_path, "net", "--uri", default_uri(tmp_path / "sweeps")
    )


def test_a_network_that_no_graph_can_be_leaves_no_trace_in_the_registry(new_store, tmp_path, call):
    folder = save_cut(tmp_path / "pruned", model="tiny:choosy")
    code, _, complaint = call("register", folder, "net", *tiny.TRUST, "--uri", new_store.uri)
    assert (code, complaint.count("\n")) == (2, 1)
    assert "error: Choosy: what it does depends on values of its input" in complaint
    client = client_of(new_store)
    assert (client.search_registered_models(), client.search_logged_models(["0", "1"])) == ([], [])


def test_a_version_that_is_interrupted_leaves_no_logged_network(new_store, saved, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("search.model_registry.registering.write_sums", stop)
    with pytest.raises(KeyboardInterrupt):
        register(saved, "net", new_store)
    client = client_of(new_store)
    assert (client.search_registered_models(), client.search_logged_models(["0", "1"])) == ([], [])


class Forbidding(BaseHTTPRequestHandler):
    """Answers everything as a server that does not know the name in the address."""

    def do_GET(self):
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Invalid Host header - possible DNS rebinding attack detected")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def forbidding():
    server = HTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("command", [("register", "net"), ("fetch", "net/1")])
def test_a_server_that_is_away_or_refuses_is_one_line(refused, saved, tmp_path, forbidding, command):
    name, argument = command
    asked = [name, saved, argument, *tiny.TRUST] if name == "register" else [name, argument, "-o", tmp_path / "again"]
    complaint = refused(*asked, "--uri", forbidding)
    assert "error code 403" in complaint
    assert "--allowed-hosts" in complaint
    assert "secret" not in complaint
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert refused(*asked, "--uri", dead) == f"error: MLflow at {dead}: Connection refused\n"


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_use_the_store_of_an_experiment(call, saved, file, tmp_path, empty_store):
    (tmp_path / "sweeps").mkdir()
    shutil.copy(empty_store / "mlflow.db", tmp_path / "sweeps")
    experiment = file(tracking={"experiment": "mine"})
    code, text, complaint = call("register", saved, "net", "--alias", "champion", "--experiment", experiment)
    assert (code, complaint) == (0, "")
    assert text.splitlines()[-1] == "registered net/1 as net@champion"
    assert f"  policy {tiny.load_cut(saved).policy.fingerprint}" in text.splitlines()
    client = MlflowClient(default_uri(tmp_path / "sweeps"))
    (model,) = client.search_logged_models([client.get_experiment_by_name("mine").experiment_id])
    assert model.status == "READY"
    code, text, complaint = call("fetch", "net@champion", "-o", tmp_path / "again", "--experiment", experiment)
    assert (code, complaint) == (0, "")
    assert text.splitlines()[-1] == f"net/1 written to {tmp_path / 'again'}, every file as it was registered"
    assert contents(tmp_path / "again") == contents(saved)


def test_without_a_word_the_store_is_that_of_the_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store.find() == Store(f"sqlite:///{tmp_path}/sweeps/mlflow.db", "prunesearch")
    assert Store.find(uri="http://here") == Store("http://here", "prunesearch")


def test_importing_the_package_does_not_import_mlflow():
    code = "import search.model_registry, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── a real server ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_over_http_a_network_comes_back_as_from_a_file(new_store, saved, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = Store(f"http://127.0.0.1:{port}")
    server = subprocess.Popen(ui_command(new_store.uri, port), cwd=tmp_path)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{there.uri}/health")
                break
            except OSError:
                time.sleep(0.5)
        assert register(saved, "net", there, alias="champion").version == 1
        fetched = fetch("net@champion", tmp_path / "again", there)
        assert contents(fetched.folder) == contents(saved)
        for reference, reason in {
            "nett/1": "did you mean 'net'",
            "net@b": r"champion \(version 1\)",
            "net/2": "1$",
        }.items():
            with pytest.raises((RegistryError, UnknownNameError), match=reason):
                fetch(reference, tmp_path / "other", there)
    finally:
        server.terminate()
        server.wait()
