"""A sweep whose trials place auxiliary losses, by criteria that look at them; rankings are made when needed."""

import pytest
import tiny

from search.driver import run_sweep
from search.prepare import prepare
from search.trial import run_trial

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    search = {
        "trials": 8,
        "groups": "inner",
        "criterion": ["l1", "ccp", {"name": "dcp", "options": {"mode": "fast"}}],
        "auxiliary": {"count": [0, 1, 2], "placement": ["even", "free"], "weight": [0.5, 1.0]},
        "ranking_images": 60,
    }
    sections = {"baseline": {"epochs": 2}, "recipe": {"epochs": 1}, "auxiliary": {"heads": {"epochs": 1}}}
    folder = tmp_path_factory.mktemp("auxiliary")
    return run_sweep(tiny.experiment(folder, model="tiny:blocks", search=search, **sections), live=False)


def test_every_trial_ends_and_some_are_on_the_front(sweep):
    assert [record.error for record in sweep.records if record.error] == []
    assert len(sweep.records) == 8
    assert sweep.front


def test_the_policy_says_the_places_that_were_proposed(sweep):
    placed = [record for record in sweep.records if record.params["auxiliary.count"] > 0]
    assert placed
    assert len(placed) < len(sweep.records)
    for record in sweep.records:
        auxiliary = record.policy.auxiliary
        assert (0 if auxiliary is None else auxiliary.heads) == record.params["auxiliary.count"]
        if record.params.get("auxiliary.placement") == "free":
            assert len(set(auxiliary.positions)) == auxiliary.heads
            assert all(1 <= position <= 3 for position in auxiliary.positions)


def test_a_trial_repeats_from_its_policy_alone(sweep):
    record = next(record for record in sweep.records if record.policy.auxiliary is not None)
    seen = []
    run_trial(record.policy, prepare(sweep.experiment), lambda metrics, _: seen.append(metrics))
    assert [metrics.accuracy for metrics in seen] == [metrics.accuracy for metrics in record.history]


def test_rankings_and_heads_lie_in_the_cache_once_each(sweep):
    cache = sweep.experiment.storage / "cache"
    asked = {}
    for record in sweep.records:
        seen = None if record.policy.criterion.name == "l1" else record.policy.auxiliary
        asked.setdefault(record.policy.criterion.name, {None}).add(seen)
    for name, placements in asked.items():
        assert len(list((cache / "rankings").glob(f"{name}-*.safetensors"))) == len(placements)
    places = {record.policy.auxiliary.positions for record in sweep.records if record.policy.auxiliary}
    assert len(list((cache / "auxiliary").iterdir())) == len(places)
