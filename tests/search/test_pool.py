"""What ended trials hold in common is there once, and says what each trial said."""

import os

import pytest
from proposals import BASELINE, Driver, Widths, experiment

from pruning import CriterionSpec
from search.pool import Pool
from search.searcher import StudySearcher
from search.study import create_study, records


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    asked = experiment(tmp_path, 12, "random")
    create_study(asked.folder, asked)
    return Driver(StudySearcher(asked.folder, asked, Widths(3), BASELINE), seed=0)


def test_ended_trials_share_all_but_their_numbers(driver):
    driver.run(12, first=0)
    driver.finish()
    searcher = driver.searcher
    first, *others = searcher.records()
    names = list(first.policy.widths)
    for other in others:
        assert other.policy.recipe is first.policy.recipe
        assert other.policy.model is first.policy.model
        assert all(a is b for a, b in zip(other.policy.widths, names, strict=True))
    kept = {id(value) for trial in searcher.ledger.trials for value in trial.distributions.values()}
    assert len(kept) == len({repr(v) for trial in searcher.ledger.trials for v in trial.distributions.values()})
    assert len(kept) < len(others)
    assert len({id(trial.distributions) for trial in searcher.ledger.trials}) == 1
    assert all(record.params is searcher.ledger.trials[record.number].params for record in others)


def test_shared_or_not_records_are_equal_and_fingerprints_too(driver):
    driver.run(12, first=0)
    driver.finish()
    alone = records(driver.searcher.study)
    assert driver.searcher.records() == alone
    assert [r.policy.fingerprint for r in driver.searcher.records()] == [r.policy.fingerprint for r in alone]


def test_equal_numbers_of_two_kinds_stay_apart():
    pool = Pool()
    whole, broken = (CriterionSpec(name="ccp", options={"damping": value}) for value in (1, 1.0))
    assert whole == broken
    assert pool.one(whole) is whole
    assert pool.one(broken) is broken
    assert pool.one(broken.model_copy()) is broken
