"""A sweep on hosts that share nothing but an S3-compatible store."""

import json
import pickle
import subprocess
import sys

import pytest
from hosts import EPOCHS, LONG, PATIENT, Cluster, endings, outcome, run, signatures
from nodes import environment_with_token, network, words
from processes import wait_for

from search import Sweep

PORT, SWEEP = 5000, "s3://sweeps/mine/tiny"

FILL = """
import sys, boto3
store = boto3.client("s3")
store.create_bucket(Bucket="sweeps")
store.upload_file(sys.argv[1], "sweeps", "weights.safetensors")
"""
TELL = """
import boto3, json
store = boto3.client("s3")
names = [found["Key"] for found in store.list_objects_v2(Bucket="sweeps")["Contents"]]
journal = [name for name in names if name.endswith("study.journal")]
lines = [store.get_object(Bucket="sweeps", Key=name)["Body"].read().decode().splitlines() for name in journal]
print(json.dumps([names, sum(lines, [])]))
"""
READ = """
import pickle, sys
from search import Sweep
sweep = Sweep.load(sys.argv[1])
with open(sys.argv[2], "wb") as file:
    pickle.dump((sweep.records, sweep.front), file)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Credentials of the store, and a folder for copies that is another one on each host."""
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "correct-horse", "AWS_DEFAULT_REGION": "us-east-1"}
    place = {"AWS_ENDPOINT_URL": f"http://10.77.0.1:{PORT}", "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("copies"))}
    return environment_with_token() | PATIENT | keys | place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment):
    """A sweep on this machine, in a folder."""
    place = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(run(place, 6), env=environment, check=True, capture_output=True)
    return Sweep.load(place / "tiny")


class Store:
    """A host with an S3-compatible store, and what other hosts see of it.

    Args:
        net: that the hosts share.
        environment: of all processes.
        place: a folder for what is no part of the sweep.
    """

    def __init__(self, net, environment, place):
        self.net, self.environment, self.place, self.host = net, environment, place, net.host()
        self.host.start([sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT)], environment)
        self._run = run(place, 6)
        wait_for(lambda: self.ask(self.host, sys.executable, "-c", FILL, place / "weights.safetensors") is not None)

    def cluster(self):
        return Cluster(self.net, self.environment, hidden=self.environment["XDG_CACHE_HOME"])

    def run(self, cluster, *options, rests_s=0):
        """Return the command of the sweep, which keeps nothing on a disk that hosts share."""
        changes = ["storage=s3://sweeps/mine", "weights=s3://sweeps/weights.safetensors"]
        changes.append(f"model.options.rests_s={rests_s}")
        settings = [word for change in changes for word in ("--set", change)]
        return words(*self._run, *settings, "--address", cluster.address, *options)

    def ask(self, host, *command):
        """Return what a command prints on a host; None where it fails."""
        asked = [*host.within, *words(*command)]
        done = subprocess.run(asked, env=self.environment, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def contents(self):
        """Return the names of all files, and the lines of the study's journal."""
        return json.loads(self.ask(self.host, sys.executable, "-c", TELL))

    def assert_as_undisturbed(self, undisturbed):
        """A host that has never seen the sweep finds every trial once, and what it says without a disturbance."""
        host, out = self.net.host(hidden=self.environment["XDG_CACHE_HOME"]), self.place / "records"
        assert self.ask(host, sys.executable, "-c", READ, SWEEP, out) is not None
        records, front = pickle.loads(out.read_bytes())
        assert list(map(outcome, records)) == list(map(outcome, undisturbed.records))
        assert [record.number for record in front] == [record.number for record in undisturbed.front]
        ends = endings(self.contents()[1])
        assert ends == endings((undisturbed.folder / "study.journal").open())
        assert set(ends.values()) == {1}


@pytest.fixture
def store(environment, tmp_path):
    with network() as net:
        yield Store(net, environment, tmp_path)


@pytest.mark.cluster
def test_hosts_that_share_a_store_alone_run_a_sweep_together(store, undisturbed, tmp_path):
    cluster = store.cluster()
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    told = store.ask(cluster.head, *store.run(cluster))
    assert told is not None
    for part in ("6 trials; hypervolume", f"prunesearch best {SWEEP}", "1 ranking made"):
        assert part in told
    assert cluster.hidden not in told
    assert all(signatures(tmp_path, host) for host in (cluster.head, worker))
    names, _ = store.contents()
    assert {f"mine/tiny/{name}" for name in ("experiment.yaml", "study.journal", "report.html")} <= set(names)
    assert not [name for name in names if any(part in name for part in ("snapshot", "driver.json", "seen", "tune"))]
    store.assert_as_undisturbed(undisturbed)


@pytest.mark.chaos
def test_a_sweep_whose_hosts_are_all_gone_goes_on_from_another_one(store, undisturbed, tmp_path):
    cluster = store.cluster()
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    driver = cluster.head.start(store.run(cluster, rests_s=LONG), store.environment)
    wait_for(lambda: len(endings(store.contents()[1])) >= 2, 300)
    assert driver.poll() is None
    for host in (cluster.head, worker):
        host.destroy()
    other = store.cluster()
    told = store.ask(other.head, *store.run(other, "--resume", rests_s=LONG))
    assert told is not None
    assert f"{SWEEP} was kept by {cluster.head.name}; waiting" in told
    done = sum(signatures(tmp_path, host) for host in (cluster.head, worker, other.head))
    assert done < 8 * EPOCHS  # what had ended was not done again, and what had begun went on
    store.assert_as_undisturbed(undisturbed)
