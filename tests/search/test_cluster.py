"""Several Ray nodes on this machine, each a process of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import tiny

from search import Sweep
from search.results import State

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
RAY = Path(sys.executable).with_name("ray")
HOST = ray.util.get_node_ip_address()


@pytest.fixture(scope="module")
def environment():
    """What every process of the cluster is started with: a token of its own."""
    paths = os.pathsep.join(map(str, [HERE.parents[1], HERE]))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**os.environ, **token, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, environment):
    """The address of a cluster of two nodes; the second sees an empty folder where the first has `private`."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    place, port = tmp_path_factory.mktemp("places"), free_port()
    (place / "private").mkdir()
    address = f"{HOST}:{port}"
    start = [RAY, "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    head = [*start, "--head", "--port", port, "--include-dashboard", "false"]
    join = " ".join(map(str, [*start, "--address", address]))
    with node(head, environment):
        wait_for(lambda: count_nodes(address, environment) == 1)
        hidden = f"mount -t tmpfs none '{place / 'private'}' && exec {join}"
        with node(["unshare", "-m", "sh", "-c", hidden], environment):
            wait_for(lambda: count_nodes(address, environment) == 2)
            yield address, place


@contextmanager
def node(command, environment):
    """Run a Ray node until the end of the block."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True, **quiet)
    try:
        yield process
    finally:
        process.terminate()  # `ray start --block` ends what it has started
        process.wait(60)


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def count_nodes(address, environment):
    code = f"import ray; ray.init('{address}', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "the cluster does not come up"
        time.sleep(0.5)


def run(asked, cluster, environment, **more):
    """Run an experiment on the cluster as one does from a terminal."""
    address, place = cluster
    path = place / "tiny.yaml"
    path.write_text(asked.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "search", "run", path, "--address", address]
    return subprocess.run(list(map(str, command)), env={**environment, **more}, capture_output=True, text=True)


def test_a_folder_that_a_node_does_not_see_is_refused_before_anything_starts(cluster, environment):
    _, place = cluster
    done = run(tiny.experiment(place / "private"), cluster, environment)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"error: node {HOST}: does not see {place / 'private'}; on several machines storage, images and weights "
    assert done.stderr.startswith(expected)
    assert list((place / "private").iterdir()) == []
    images = place / "private" / "images"
    images.mkdir()
    data = {"name": "image_folder", "options": {"root": str(images)}}
    done = run(tiny.experiment(place / "shared", data=data), cluster, environment)
    assert (done.returncode, done.stderr[: done.stderr.index(";")]) == (2, f"error: node {HOST}: does not see {images}")
    assert list((place / "shared").iterdir()) == []


def test_a_sweep_runs_on_both_nodes(cluster, environment):
    _, place = cluster
    done = run(tiny.experiment(place / "shared", search={"trials": 6}), cluster, environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()  # of the preparation, too, which a node makes
    assert [line[:9] for line in lines[2:10]] == ["training ", *(f"  epoch {n}" for n in range(1, 7)), "baseline:"]
    assert "1 ranking made" in done.stdout
    sweep = Sweep.load(place / "shared" / "tiny")
    assert [record.state for record in sweep.records] == [State.FINISHED] * 6


def test_a_cluster_that_wants_another_token_is_told_apart(cluster, environment):
    _, place = cluster
    done = run(tiny.experiment(place / "elsewhere"), cluster, environment, RAY_AUTH_TOKEN="wrong" * 10)
    last = done.stderr.splitlines()[-1]  # above it Ray tells of each attempt
    assert (done.returncode, last[:16]) == (2, "error: --address")
    assert "RAY_AUTH_TOKEN" in last
