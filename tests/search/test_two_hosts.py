"""A sweep on hosts of their own: they share the sweep's folder and the code, and what is between them breaks."""

import random
import subprocess
import time
from functools import cache

import pytest
from hosts import EPOCHS, LONG, PATIENT, Cluster, endings, outcome, run, signatures
from nodes import environment_with_token, network
from processes import wait_for

from search import Sweep
from search.results import State

CUTS = 10


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


@pytest.fixture
def cluster(environment):
    with network() as net:
        yield Cluster(net, environment)


# ── what came out ────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_as_undisturbed(place, undisturbed):
    """Every trial is there once, none is lost or told twice, and all say what they say without a disturbance."""
    sweep, trials = Sweep.load(place / "tiny"), len(undisturbed.records)
    assert [record.state for record in sweep.records] == [State.FINISHED] * trials
    ends, expected = (endings((folder / "study.journal").open()) for folder in (sweep.folder, undisturbed.folder))
    assert ends == expected
    assert set(ends.values()) == {1}
    assert list(map(outcome, sweep.records)) == list(map(outcome, undisturbed.records))
    assert [record.number for record in sweep.front] == [record.number for record in undisturbed.front]


# ── tests ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
def test_a_sweep_on_two_hosts_whose_link_is_cut_for_a_moment_is_that_on_one(cluster, undisturbed, tmp_path):
    worker, _ = cluster.join()
    cluster.wait_for(cluster.head, worker)
    with cluster.sweeping(tmp_path, 6):
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3)
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
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3)
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
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3)
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
        wait_for(lambda: signatures(tmp_path, worker) > EPOCHS // 3)
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
        wait_for(lambda: signatures(tmp_path, worker) > 0)
        for _ in range(CUTS):
            time.sleep(rng.uniform(0.5, 3))
            worker.cut()
            time.sleep(rng.uniform(0.2, 3))
            worker.heal()
    assert_as_undisturbed(tmp_path, undisturbed(8))
