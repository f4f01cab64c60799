"""A sweep by the defaults (starts, surrogate, sampler), again with the same seed, and with more trials."""

import pytest
import tiny

from search.config import load_experiment
from search.driver import extend_sweep, resume_sweep, run_sweep
from search.errors import SweepError
from search.results import State
from search.sweep import Sweep

SEARCH = {"trials": 6, "concurrent": 1, "sampler": "tpe", "start": "papers", "surrogate": "sensitivity", "seed": 3}


def swept(folder, name):
    asked = tiny.experiment(
        folder, name=name, baseline={"epochs": 1}, recipe={"epochs": 0}, search={**SEARCH, "ranking_images": 60}
    )
    return run_sweep(asked, live=False)


def told(records):
    return [(record.number, record.policy, record.metrics.accuracy, record.metrics.macs) for record in records]


@pytest.fixture(scope="module")
def first(tmp_path_factory, local_ray):
    return swept(tmp_path_factory.mktemp("sweeps"), "first")


def test_starts_the_surrogate_and_the_sampler_take_turns(first):
    sources = [record.extra.get("source", "sampler").split(" ")[0] for record in first.records]
    assert sources[0] == "uniform"
    assert {"surrogate", "sampler"} == set(sources[1:])
    assert sources.count("surrogate") > sources.count("sampler")
    assert len({record.policy.fingerprint for record in first.records}) == 6


def test_what_the_surrogate_expects_is_on_record_with_each_of_its_proposals(first):
    for record in first.records:
        expected = record.extra.get("predicted")
        if record.extra.get("source") != "surrogate":
            assert expected is None
            continue
        assert set(expected) == {"accuracy", "deviation", "trained"}
        assert 0 < expected["accuracy"] < 1
        assert expected["deviation"] > 0
        assert expected["trained"] is False  # the recipe has no epochs


def test_the_same_seed_and_one_worker_give_the_same_front_twice(first):
    again = swept(first.folder.parent, "again")
    assert told(again.records) == told(first.records)
    assert told(again.front) == told(first.front)


def test_more_trials_go_on_from_a_finished_sweep(first):
    with pytest.raises(
        SweepError, match=r"finished, all 6 trials have ended; add some with: prunesearch extend .*first"
    ):
        resume_sweep(first.folder, live=False)
    with pytest.raises(SweepError, match=r"^--trials: expected at least 1, got 0$"):
        extend_sweep(first.folder, 0)
    said = []
    longer = extend_sweep(first.folder, 2, say=said.append, live=False)
    assert f"extending {first.folder} from 6 to 8 trials" in said
    assert told(longer.records[:6]) == told(first.records)
    assert [record.state for record in longer.records] == [State.FINISHED] * 8
    assert load_experiment(first.folder).search.trials == 8
    assert len(Sweep.load(first.folder).records) == 8
