"""A sweep on hosts of their own: they share the sweep's folder and the code, and what is between them breaks."""

import json
import random
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch
from nodes import RAY, SEARCH, alive_nodes, environment_with_token, head_at, network, start_node, wait_for, words
from optuna.trial import TrialState

from pruning import build_model, save_weights
from search import Sweep
from search.results import State

EPOCHS, LONG = 20, 0.6
"""Of a trial; and seconds that one rests after each where it has to take longer than a worker takes to start: Tune lets
a trial that waits for a new worker have the first one that is free, and the new one go."""

CUTS = 10

PATIENT = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000"}
"""Ray gives a node up after some seconds, not after a minute: five checks in a row that fail."""

FINISH, ENDS = 6, {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
"""Optuna's code of a line that sets a trial's state, and the states that are an end."""


@pytest.fixture(scope="module")
def environment():
    return environment_with_token() | PATIENT


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment):
    """Runs a sweep of so many trials on this machine, and nothing happens to it."""

    @cache
    def swept(trials):
        place = tmp_path_factory.mktemp("undisturbed")
        done = subprocess.run(run(place, trials), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Sweep.load(place / "tiny")

    return swept


def run(place, trials, *options, rests_s=0, **sections):
    """Return the command that runs a sweep in a folder."""
    model = {"name": "tiny:signed", "options": {"book": str(place / "book"), "rests_s": rests_s}}
    recipe = {"epochs": EPOCHS, "learning_rate": 0.05, "batch_size": 10}
    search, weights = {"trials": trials, "seed": 3}, str(place / "weights.safetensors")
    experiment = tiny.experiment(place, model=model, weights=weights, recipe=recipe, search=search, **sections)
    torch.manual_seed(0)
    save_weights(build_model(experiment.model), experiment.weights)
    path = place / "tiny.yaml"
    path.write_text(experiment.to_yaml(), encoding="utf-8")
    return words(*SEARCH, "run", path, "--plain", *options)


def signatures(place, host):
    """Return how many epochs of training a host has seen."""
    book = place / "book"
    return book.read_text().splitlines().count(host.name) if book.exists() else 0


class Cluster:
    """A head, and whoever joins it."""

    def __init__(self, net, environment):
        self.net, self.environment, self.head = net, environment, net.host()
        self.address = f"{self.head.address}:6379"
        self.head.start(head_at(self.address), environment)
        self.wait_for(self.head)

    @property
    def alive(self):
        """The names of the nodes by their addresses."""
        return dict(alive_nodes(self.address, self.environment, self.head.within))

    def wait_for(self, *hosts):
        wait_for(lambda: {host.address for host in hosts} == self.alive.keys())

    def join(self, host=None, **options):
        """Start a Ray node on a host, a new one unless told; return the host and the node's process."""
        host = host or self.net.host(**options)
        return host, host.start(
            start_node("--address", self.address, "--node-ip-address", host.address), self.environment
        )

    def announce_end(self, host, seconds):
        """Tell Ray that a host goes, as machines are told that are lent for less."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "lent for less"]
        asked = ["drain-node", "--address", self.address, "--node-id", self.alive[host.address], *reason]
        asked += ["--deadline-remaining-seconds", seconds]
        subprocess.run(words(*self.head.within, RAY, *asked), env=self.environment, check=True, capture_output=True)

    @contextmanager
    def sweeping(self, place, trials, **more):
        """Run the sweep on the head while the block does what it does, and to its end."""
        told = place / "told.txt"
        with told.open("w") as out:
            streams = {"stdout": out, "stderr": subprocess.STDOUT}
            command = run(place, trials, "--address", self.address, **more)
            driver = self.head.start(command, self.environment, **streams)
        yield
        assert driver.wait(300) == 0, told.read_text()


@pytest.fixture
def cluster(environment):
    with network() as net:
        yield Cluster(net, environment)


# ── what came out ────────────────────────────────────────────────────────────────────────────────────────────────────


def endings(folder):
    """Return how often the study's journal says that each trial has ended."""
    lines = [json.loads(line) for line in (folder / "study.journal").read_text().splitlines()]
    return Counter(
        line["trial_id"] for line in lines if line["op_code"] == FINISH and TrialState(line["state"]) in ENDS
    )


def outcome(record):
    """Return what a trial was and measured, without its seconds and the place of its book."""
    policy = record.policy.model_dump(exclude={"model"})
    return record.number, policy, [replace(metrics, seconds=0.0) for metrics in record.history]


def assert_as_undisturbed(place, undisturbed):
    """Every trial is there once, none is lost or told twice, and all say what they say without a disturbance."""
    sweep, trials = Sweep.load(place / "tiny"), len(undisturbed.records)
    assert [record.state for record in sweep.records] == [State.FINISHED] * trials
    assert endings(sweep.folder) == endings(undisturbed.folder)
    assert set(endings(sweep.folder).values()) == {1}
    assert list(map(outcome, sweep.records)) == list(map(outcome, undisturbed.records))
    assert [record.number for record in sweep.front] == [record.number for record in undisturbed.front]


# ── tests ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
def test_a_sweep_on_two_hosts_whose_link_is_cut_for_a_moment_is_that_on_one(cluster, undisturbed, tmp_path):
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 6):
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3, every=0.1)
        worker.cut()
        time.sleep(2)
        worker.heal()
    assert signatures(tmp_path, cluster.head) + signatures(tmp_path, worker) == 6 * EPOCHS
    assert signatures(tmp_path, cluster.head) > 0
    assert_as_undisturbed(tmp_path, undisturbed(6))


@pytest.mark.chaos
def test_a_host_that_is_given_up_for_a_long_cut_and_comes_back_is_used_again(cluster, undisturbed, tmp_path):
    worker, joined = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 8, rests_s=LONG):
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3, every=0.1)
        worker.cut()
        cluster.wait_for(cluster.head)
        worker.heal()
        joined.wait(60)  # Ray ends a node that it had given up
        before = signatures(tmp_path, worker)
        cluster.join(worker)
        wait_for(lambda: signatures(tmp_path, worker) > before)
    assert_as_undisturbed(tmp_path, undisturbed(8))


@pytest.mark.chaos
@pytest.mark.parametrize("silently", [False, True])
def test_trials_of_a_host_that_is_gone_for_good_go_on_and_one_that_joins_is_used(
    cluster, undisturbed, tmp_path, silently
):
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 8, rests_s=LONG):
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3, every=0.1)
        if silently:
            worker.cut()  # nobody hears the connections end
        worker.destroy()
        other, _ = cluster.join()
        wait_for(lambda: signatures(tmp_path, other) > 0)
    assert_as_undisturbed(tmp_path, undisturbed(8))


@pytest.mark.chaos
def test_a_host_that_joins_and_does_not_see_the_sweep_loses_no_trial(cluster, undisturbed, tmp_path):
    with cluster.sweeping(tmp_path, 8, rests_s=LONG):
        wait_for(lambda: signatures(tmp_path, cluster.head) > 0)
        blind, _ = cluster.join(hidden=tmp_path)
        cluster.wait_for(cluster.head, blind)
    notes = {record.extra.get("note", "").partition(":")[0] for record in Sweep.load(tmp_path / "tiny").records}
    assert notes == {"", "trials start afresh where they are interrupted, for they cannot write snapshots"}
    assert_as_undisturbed(tmp_path, undisturbed(8))


@pytest.mark.chaos
def test_a_host_whose_end_is_announced_costs_no_retry(cluster, undisturbed, tmp_path):
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 8, rests_s=LONG, resources={"retries": 0}):
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3, every=0.1)
        cluster.announce_end(worker, 2)
        time.sleep(2)
        worker.destroy()
    assert_as_undisturbed(tmp_path, undisturbed(8))


@pytest.mark.chaos
def test_a_link_that_is_cut_again_and_again_costs_nothing_but_time(cluster, undisturbed, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 8, rests_s=LONG):
        wait_for(lambda: signatures(tmp_path, worker) > 0, every=0.1)
        for _ in range(CUTS):
            time.sleep(rng.uniform(0.5, 3))
            worker.cut()
            time.sleep(rng.uniform(0.2, 3))
            worker.heal()
    assert_as_undisturbed(tmp_path, undisturbed(8))
