"""Processes that end without a word: SIGKILL, as a machine that is taken away."""

import os
import signal
import time

import faults
import pytest
from faults import LONG
from processes import has_ended, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

STAGES_OF_WORKERS = {
    "loading what is shared": {"place": "search.trainable:received"},
    "ranking in a task": {"place": "search.sharing:_rank"},
    "looking up a ranking in a trial": {"place": "search.trial:policy_ranking"},
    "cutting": {"place": "search.trial:prune"},
    "having cut": {"place": "search.trial:prune", "how": "after"},
    "training, mid-epoch": {"place": "pruning.steps:OneStep.__call__", "call": 9},
    "evaluating": {"place": "search.trial:evaluate", "call": 2},
    "writing a snapshot": {"place": "pathlib:Path.write_bytes", "how": "torn", "match": ".draft"},
    "having written a snapshot": {"place": "pathlib:Path.replace", "how": "after", "match": "snapshots"},
    "reporting": {"place": "ray.tune:report", "call": 2},
    "having reported": {"place": "ray.tune:report", "how": "after", "call": 3},
    "having ended": {"place": "search.trainable:run_trial", "how": "after"},
}

STAGES_OF_DRIVERS = {
    "training the baseline": {"place": "search.prepare:train_baseline"},
    "writing the baseline": {"place": "search.prepare:save_weights", "how": "after"},
    "sharing": {"place": "search.driver:share"},
    "making the folder": {"place": "search.driver:create_study", "how": "after"},
    "having made the folder": {"place": "search.driver:_create", "how": "after"},
    "launching": {"place": "search.driver:_fit"},
    "proposing": {"place": "search.searcher:StudySearcher.suggest", "call": 2},
    "having proposed, before Tune knows": {"place": "search.searcher:StudySearcher.suggest", "how": "after", "call": 2},
    "writing the journal": {"place": "search.journal:_write_whole", "how": "torn", "call": 4},
    "hearing a result": {"place": "search.watcher:Watcher.on_trial_result", "call": 2},
    "hearing of an end": {"place": "search.searcher:StudySearcher.on_trial_complete"},
    "between the journal and MLflow's outbox": {"place": "search.watcher:Watcher.on_trial_complete"},
    "removing a snapshot": {"place": "search.driver:forget"},
    "Tune's snapshot": {"place": "search.searcher:StudySearcher.save"},
    "carrying lines to MLflow": {"place": "search.tracking.runs:Runs.log", "how": "after", "call": 3},
    "drawing": {"place": "search.sweep:write_report"},
}


def test_workers_die_once_at_every_stage(new_place, kept):
    place = new_place(**LONG)
    for stage in STAGES_OF_WORKERS.values():
        place.fault(**stage)
    assert place.run() == 0, place.err
    assert not place.waiting
    kept(place, "a worker is killed", "once at each of its stages", place.met)


def test_workers_die_at_random(new_place, kept, rng):
    place, kills = new_place(**LONG), 0
    driver = place.start("run", place.file, "--resume", "--plain")
    try:
        while driver.poll() is None:
            time.sleep(rng.uniform(0.1, 3))
            for pid in rng.sample(faults.workers(driver.pid), 1) if kills < 30 and faults.workers(driver.pid) else ():
                os.kill(pid, signal.SIGKILL)
                kills += 1
    finally:
        faults.end(driver)
    assert driver.returncode == 0, place.err
    kept(place, "a worker is killed", "at random moments", kills)


def test_the_driver_dies_once_at_every_stage(new_place, kept):
    place = new_place(trained=False)
    for stage in STAGES_OF_DRIVERS.values():
        place.fault(who="driver", **stage)
        code = place.run()
        assert code in (0, -signal.SIGKILL), place.err
    assert place.run() == 0, place.err
    assert not place.waiting
    kept(place, "the sweep's process is killed", "once at each of its stages", place.met)


def test_the_driver_dies_at_random_more_than_twenty_times_in_a_row(new_place, kept, rng):
    place, kills, sessions = new_place(**LONG), 0, []

    def lines():
        journal = place.sweep / "study.journal"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    while kills < 21:
        driver, before, began = place.start("run", place.file, "--resume", "--plain"), lines(), time.monotonic()
        sessions.append(driver.pid)
        moment, more = rng.uniform(0, 6), rng.randrange(1, 12)
        early = rng.random() < 0.3

        def come(driver=driver, before=before, began=began, moment=moment, more=more, early=early):
            late = time.monotonic() > began + moment if early else lines() >= before + more
            return late or driver.poll() is not None

        wait_for(come)
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            kills += 1
            if rng.random() < 0.5:  # else the next one comes while workers of this one are still there
                wait_for(lambda driver=driver: has_ended(driver.pid))
        else:
            assert driver.returncode == 0, place.err
            break
    code = place.run()
    wait_for(lambda: all(map(has_ended, sessions)))
    assert code == 0, place.err
    kept(place, "the sweep's process is killed", "at random moments of one sweep, one after the other", kills)
    assert kills >= 20
