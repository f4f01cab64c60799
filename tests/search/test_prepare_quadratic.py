"""A ranking that seeks its sets on demand is kept between sweeps like any other."""

import tiny

from pruning import CRITERIA, QuadraticRanking
from search.prepare import prepare


def test_a_quadratic_ranking_is_read_back_and_keeps_the_same_channels(tmp_path, monkeypatch):
    experiment = tiny.experiment(
        tmp_path, baseline={"epochs": 1}, search={"criterion": "ccp", "allocation": "global", "ranking_images": 40}
    )
    (made,) = prepare(experiment).rankings.values()

    def refuse(*_):
        raise AssertionError("ranked again")

    monkeypatch.setattr(CRITERIA.get("ccp"), "rank", refuse)
    (again,) = prepare(experiment).rankings.values()
    assert isinstance(again, QuadraticRanking)
    assert [again.keep("second", width) for width in (1, 5, 16)] == [made.keep("second", width) for width in (1, 5, 16)]
