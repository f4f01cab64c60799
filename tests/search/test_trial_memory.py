"""What users hear of memory that ran out."""

import pytest
import tiny
import torch

from pruning import CRITERIA, CriterionSpec, RankingError, StreamingCriterion
from search import rankings
from search.driver import run_sweep
from search.prepare import prepare_unranked
from search.rankings import rank_ahead, ranking_for
from search.results import State
from search.sweep import Sweep

TOLD = "expected memory to rank, got: CUDA out of memory. Tried to allocate 2.00 GiB; fewer search.ranking_images"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare_unranked(tiny.experiment(tmp_path_factory.mktemp("shared"), baseline={"epochs": 1}))


def greedy(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less\nand so on")


def test_a_ranking_that_runs_out_of_memory_is_one_clear_line_and_nothing_is_kept(inputs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CRITERIA.get("l1"), "rank", greedy)
        with pytest.raises(RankingError, match=f"^l1: {TOLD}") as failed:
            ranking_for(inputs, CriterionSpec(name="l1"), None)
    assert "\n" not in str(failed.value)
    assert ranking_for(inputs, CriterionSpec(name="l1"), None).keep("first", 3)


def test_rankings_in_one_pass_that_run_out_of_memory_are_all_named(inputs, monkeypatch):
    specs = [CriterionSpec(name=name) for name in ("apoz", "hrank")]
    assert all(issubclass(CRITERIA.get(spec.name), StreamingCriterion) for spec in specs)
    monkeypatch.setattr(rankings, "rank_together", greedy)
    with pytest.raises(RankingError, match=f"^apoz, hrank: {TOLD}"):
        rank_ahead(inputs, specs, None)


def test_other_errors_of_a_ranking_are_what_they_are(inputs, monkeypatch):
    def broken(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(CRITERIA.get("l2"), "rank", broken)
    with pytest.raises(RuntimeError, match=r"^a mistake$"):
        ranking_for(inputs, CriterionSpec(name="l2"), None)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("most", [20, 0])
def test_trials_train_in_parts_and_say_so_or_fail_in_one_line(tmp_path, most):
    model = {"name": "tiny:greedy", "options": {"most": most}}
    experiment = tiny.experiment(tmp_path, model=model, weights=str(tiny.untrained(tmp_path, model)))
    said = []
    if most == 0:
        with pytest.raises(ValueError, match="no trial succeeded; 4 failed, the first with: training: expected memory"):
            run_sweep(experiment, say=said.append, live=False)
        return
    ran = run_sweep(experiment, say=said.append, live=False)
    note = "training: memory does not hold 50 images at a time; goes on with 13"
    assert {record.state for record in ran.records} == {State.FINISHED}
    assert {record.extra["note"] for record in ran.records} == {note}
    assert f"note: {note} (4 of 4 trials)" in said
    assert Sweep.load(ran.folder).records == ran.records
