"""A sweep on hosts that share nothing but an S3-compatible store."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from nodes import SEARCH, environment_with_token, network, wait_for, words
from test_two_hosts import ENDS, EPOCHS, FINISH, LONG, PATIENT, Cluster, outcome, run, signatures
from test_two_hosts import undisturbed as undisturbed

PORT = 5000
SWEEP = "s3://sweeps/mine/tiny"

MAKE_BUCKET = """
import boto3, sys
store = boto3.client("s3")
store.create_bucket(Bucket="sweeps")
store.upload_file(sys.argv[1], "sweeps", "weights.safetensors")
"""
LIST = """
import boto3, json
store = boto3.client("s3")
keys = [found["Key"] for found in store.list_objects_v2(Bucket="sweeps").get("Contents", [])]
journal = [key for key in keys if key.endswith("study.journal")]
texts = [store.get_object(Bucket="sweeps", Key=key)["Body"].read().decode() for key in journal]
print(json.dumps([keys, texts]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Credentials of the store, and a place for copies that is another one on each host."""
    copies = tmp_path_factory.mktemp("copies")
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "correct-horse", "AWS_DEFAULT_REGION": "us-east-1"}
    store = {"AWS_ENDPOINT_URL": f"http://10.77.0.1:{PORT}", "XDG_CACHE_HOME": str(copies)}
    return environment_with_token() | PATIENT | keys | store


class Stored:
    """A cluster whose hosts share a store, and are looked at from outside through it alone."""

    def __init__(self, net, environment, place):
        self.net, self.environment, self.place = net, environment, place
        self.hidden = environment["XDG_CACHE_HOME"]
        self.store = net.host()
        self.store.start([sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT)], environment)
        self.command = self.within(run(place, 6, "--set", "storage=s3://sweeps/mine"), rests_s=0)
        wait_for(lambda: self.tell(self.store, sys.executable, "-c", MAKE_BUCKET, place / "weights.safetensors") == "")

    def within(self, command, rests_s):
        """Return a command of `run` that has nothing of the sweep's on a disk that hosts share."""
        return [*command, *words("--set", "weights=s3://sweeps/weights.safetensors", "--set")] + [
            f"model.options.rests_s={rests_s}"
        ]

    def cluster(self):
        """Start a head; it and all that join have places of their own for copies."""
        found = Cluster.__new__(Cluster)
        found.net, found.environment, found.head = self.net, self.environment, self.net.host(hidden=self.hidden)
        found.address = f"{found.head.address}:6379"
        from nodes import head_at

        found.head.start(head_at(found.address), self.environment)
        found.wait_for(found.head)
        return found

    def tell(self, host, *command):
        """Return what a command prints on a host; None where it fails."""
        asked = [*host.within, *words(*command)]
        done = subprocess.run(asked, env=self.environment, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def contents(self):
        """Return the names in the store, and the lines of the study's journal."""
        keys, texts = json.loads(self.tell(self.store, sys.executable, "-c", LIST))
        return keys, [json.loads(line) for text in texts for line in text.splitlines()]


@pytest.fixture
def stored(environment, tmp_path):
    with network() as net:
        yield Stored(net, environment, tmp_path)


def read(stored, folder):
    """Return the sweep's records as a host tells them that has never seen it, by way of a file."""
    host, out = stored.net.host(hidden=stored.hidden), folder / "records.pickle"
    code = f"""
import pickle, sys
from search import Sweep
sweep = Sweep.load({SWEEP!r})
pickle.dump((sweep.records, [record.number for record in sweep.front]), open({str(out)!r}, "wb"))
"""
    assert stored.tell(host, sys.executable, "-c", code) is not None
    import pickle

    return pickle.loads(out.read_bytes())


def assert_as_undisturbed(stored, undisturbed, folder):
    records, front = read(stored, folder)
    assert list(map(outcome, records)) == list(map(outcome, undisturbed.records))
    assert front == [record.number for record in undisturbed.front]
    _, lines = stored.contents()
    ends = Counter(line["trial_id"] for line in lines if line["op_code"] == FINISH and line["state"] in ENDS)
    assert ends == dict.fromkeys(range(len(records)), 1)


@pytest.mark.cluster
def test_hosts_that_share_a_store_alone_run_a_sweep_together(stored, undisturbed, tmp_path):
    cluster = stored.cluster()
    worker, _ = cluster.join(hidden=stored.hidden)
    cluster.wait_for(cluster.head, worker)
    told = stored.tell(cluster.head, *stored.command, "--address", cluster.address)
    assert told is not None
    assert "6 trials; hypervolume" in told
    assert f"prunesearch best {SWEEP}" in told
    assert "1 ranking made" in told
    assert stored.hidden not in told
    assert [signatures(tmp_path, host) > 0 for host in (cluster.head, worker)] == [True, True]
    keys, _ = stored.contents()
    assert {f"mine/tiny/{name}" for name in ("experiment.yaml", "study.journal", "report.html")} <= set(keys)
    assert [key for key in keys if "snapshot" in key or "driver.json" in key or "seen-by" in key] == []
    assert_as_undisturbed(stored, undisturbed(6), tmp_path)


@pytest.mark.chaos
def test_a_sweep_whose_drivers_host_is_gone_goes_on_from_another_host(stored, undisturbed, tmp_path):
    cluster = stored.cluster()
    worker, _ = cluster.join(hidden=stored.hidden)
    cluster.wait_for(cluster.head, worker)
    command = stored.within(stored.command, rests_s=LONG)
    driver = cluster.head.start([*command, "--address", cluster.address], stored.environment)

    def some_have_ended():
        _, lines = stored.contents()
        return sum(line["op_code"] == FINISH and line["state"] in ENDS for line in lines) >= 2

    wait_for(some_have_ended, 300)
    assert driver.poll() is None
    for host in (cluster.head, worker):
        host.destroy()
    again = stored.cluster()
    told = stored.tell(again.head, *command, "--resume", "--address", again.address)
    assert told is not None
    assert f"{SWEEP} was kept by {cluster.head.name}; waiting" in told
    done = sum(signatures(tmp_path, host) for host in (cluster.head, worker, again.head))
    assert done < 6 * EPOCHS + 3 * EPOCHS  # what had ended was not done again, what had begun went on
    assert_as_undisturbed(stored, undisturbed(6), tmp_path)


def test_search_is_what_is_run():
    assert SEARCH[1:] == ["-m", "search"]
