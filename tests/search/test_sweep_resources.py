"""Sweeps whose trials run short of something."""

import json

import pytest
import tiny

from search.driver import run_sweep
from search.results import State

pytestmark = pytest.mark.usefixtures("local_ray")


def poisoned(folder, **sections):
    """Return a sweep whose first worker loses its GPU in the second epoch of its first trial."""
    model = {"name": "tiny:poisoned", "options": {"grave": str(folder / "grave")}}
    sections["search"] = {"trials": 3, "concurrent": 1} | sections.get("search", {})
    return tiny.experiment(folder, model=model, weights=str(tiny.untrained(folder, model)), **sections)


def test_a_worker_that_lost_its_gpu_takes_one_trial_with_it_and_no_more(tmp_path):
    ran = run_sweep(poisoned(tmp_path, resources={"retries": 0}), live=False)
    assert [record.state for record in ran.records] == [State.FAILED, State.FINISHED, State.FINISHED]
    assert ran.records[0].error == "RuntimeError: CUDA error: device-side assert triggered"


def test_a_trial_whose_worker_lost_its_gpu_goes_on_in_another(tmp_path):
    ran = run_sweep(poisoned(tmp_path, search={"trials": 1}), live=False)
    (record,) = ran.records
    assert record.state is State.FINISHED
    assert [metrics.epoch for metrics in record.history] == [0, 1, 2]


def test_a_trial_is_given_the_memory_that_it_asks_for(tmp_path):
    book = tmp_path / "book"
    model = {"name": "tiny:booked", "options": {"book": str(book)}}
    sections = {"search": {"trials": 2}, "resources": {"cpus": 0.5, "memory_gib": 0.25}}
    run_sweep(
        tiny.experiment(tmp_path, model=model, weights=str(tiny.untrained(tmp_path, model)), **sections), live=False
    )
    given = [json.loads(line) for line in book.read_text().splitlines()]
    assert len(given) == 2 * 2 * 6
    assert {(found["CPU"], found["memory"]) for found in given} == {(0.5, 2**28)}
