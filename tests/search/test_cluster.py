"""Several Ray nodes on this machine, each a process of its own."""

import shutil
import subprocess

import pytest
import tiny
from nodes import (
    HOST,
    SEARCH,
    alive_nodes,
    environment_with_token,
    free_port,
    head_at,
    node,
    start_node,
    wait_for,
    words,
)

from search import Sweep
from search.results import State

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def environment():
    return environment_with_token()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, environment):
    """The address of a cluster of two nodes; the second sees an empty folder where the first has `private`."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    place, port = tmp_path_factory.mktemp("places"), free_port()
    (place / "private").mkdir()
    address = f"{HOST}:{port}"
    with node(head_at(address), environment):
        wait_for(lambda: len(alive_nodes(address, environment)) == 1)
        hidden = f"mount -t tmpfs none '{place / 'private'}' && exec {' '.join(start_node('--address', address))}"
        with node(["unshare", "-m", "sh", "-c", hidden], environment):
            wait_for(lambda: len(alive_nodes(address, environment)) == 2)
            yield address, place


def run(asked, cluster, environment, **more):
    """Run an experiment on the cluster as one does from a terminal."""
    address, place = cluster
    path = place / "tiny.yaml"
    path.write_text(asked.to_yaml(), encoding="utf-8")
    command = words(*SEARCH, "run", path, "--address", address)
    return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True)


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
