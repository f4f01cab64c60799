"""An allocation that looks at the ranking of a criterion of its own, whichever one chooses the channels."""

from dataclasses import replace

import pytest
import tiny
from optuna.trial import FixedTrial

from pruning import ALLOCATIONS, CRITERIA, CriterionSpec, NestedRanking, PathRanking
from search.errors import ExperimentError
from search.inputs import ranking_key
from search.prepare import prepare, space_of
from search.rankings import rank_all
from search.trial import run_trial

APIB, L1 = CriterionSpec(name="apib"), CriterionSpec(name="l1")


def experiment(folder, **search):
    search = {"allocation": "hsic_lasso", "criterion": "l1", "ranking_images": 24, "budget": "60%", **search}
    if isinstance(share := search["budget"], str):
        search["budget"] = {"minimum": share, "maximum": share}
    return tiny.experiment(folder, baseline={"epochs": 1}, search=search)


@pytest.fixture
def ranked(monkeypatch):
    """Return what was ranked, in order."""
    calls = []
    for name, method in (("apib", "watcher"), ("fpgm", "rank"), ("l1", "rank")):  # apib may share a pass
        criterion = CRITERIA.get(name)
        made = getattr(criterion, method)

        def noted(self, *args, _name=name, _made=made):
            calls.append(_name)
            return _made(self, *args)

        monkeypatch.setattr(criterion, method, noted)
    return calls


def test_the_widths_follow_from_the_paths_and_the_channels_from_the_policys_criterion(tmp_path, ranked):
    asked = experiment(tmp_path)
    inputs = prepare(asked)
    assert ranked == ["l1", "apib"]
    policy = space_of(inputs).only_policy()
    assert policy.criterion == L1
    paths, magnitudes = inputs.rankings[ranking_key(APIB)], inputs.rankings[ranking_key(L1)]
    assert isinstance(paths, PathRanking)
    assert isinstance(magnitudes, NestedRanking)
    macs = int(0.6 * inputs.cost.full.macs)
    assert policy.widths == ALLOCATIONS.build("hsic_lasso").widths(inputs.searched, inputs.cost, macs, paths)
    reported = []
    outcome = run_trial(policy, inputs, lambda metrics, _: reported.append(metrics))
    assert len(reported) == 3
    assert outcome.metrics.macs <= macs
    for name, width in policy.widths.items():
        assert outcome.kept.get(name, magnitudes.keep(name, width)) == magnitudes.keep(name, width)
    assert outcome.kept
    assert ranked == ["l1", "apib"]


def test_the_paths_are_cached_under_their_own_key(tmp_path, ranked):
    first = prepare(experiment(tmp_path))
    again = prepare(experiment(tmp_path, criterion=["fpgm", "apib"]))
    assert ranked == ["l1", "apib", "fpgm"]
    assert set(again.rankings) == {ranking_key(CriterionSpec(name="fpgm")), ranking_key(APIB)}
    widths = [space_of(inputs).suggest(FixedTrial({"criterion": "fpgm"})).widths for inputs in (first, again)]
    assert widths[0] == widths[1]


def test_its_options_make_another_ranking_and_the_floor_does_not(tmp_path, ranked):
    rules = [
        "hsic_lasso",
        {"name": "hsic_lasso", "options": {"minimum_width": 3}},
        {"name": "hsic_lasso", "options": {"criterion": {"kernel": "gauss"}}},
    ]
    inputs = prepare(experiment(tmp_path, allocation=rules))
    assert sorted(ranked) == ["apib", "apib", "l1"]
    gauss = CriterionSpec(name="apib", options={"kernel": "gauss"})
    assert set(inputs.rankings) == {ranking_key(spec) for spec in (L1, APIB, gauss)}


def test_losses_whose_places_are_free_do_not_matter_to_it(tmp_path, ranked):
    search = {"groups": "inner", "criterion": ["l1", "ccp"], "allocation": "hsic_lasso", "ranking_images": 24}
    asked = tiny.experiment(
        tmp_path,
        model="tiny:blocks",
        baseline={"epochs": 1},
        auxiliary={"heads": {"epochs": 1}},
        search=search | {"auxiliary": {"count": [1, 2], "placement": "free"}},
    )
    inputs = prepare(asked)
    assert ranked == ["l1", "apib"]  # ccp waits for its trials
    values = {"criterion": "ccp", "auxiliary.count": 1, "auxiliary.position.1of1": 2, "budget": 0.5}
    policy = space_of(inputs).suggest(FixedTrial(values))
    assert inputs.cost.cost(policy.widths).macs <= 0.5 * inputs.cost.full.macs


def test_a_criterion_that_the_widths_do_not_follow_from_still_waits_for_its_trials(tmp_path):
    asked = tiny.experiment(
        tmp_path,
        model="tiny:blocks",
        baseline={"epochs": 1},
        search={
            "groups": "inner",
            "criterion": "ccp",
            "allocation": "hsic_lasso",
            "ranking_images": 24,
            "auxiliary": 1,
        },
    )
    assert set(prepare(asked).rankings) == {ranking_key(APIB)}


def test_where_the_network_is_fine_tuned_for_free_losses_it_is_refused(tmp_path):
    search = {"groups": "inner", "allocation": "hsic_lasso", "ranking_images": 24}
    asked = tiny.experiment(
        tmp_path,
        model="tiny:blocks",
        baseline={"epochs": 1},
        auxiliary={"heads": {"epochs": 1}, "schedule": "joint"},
        search=search | {"auxiliary": {"count": [1, 2], "placement": "free"}},
    )
    inputs = prepare(asked)
    assert not inputs.rankings
    with pytest.raises(
        ExperimentError, match=r"search.auxiliary: criterion 'apib' sees losses whose places .* are free"
    ):
        space_of(inputs)


def test_rank_all_asks_for_what_is_missing_only(tmp_path, ranked):
    inputs = prepare(experiment(tmp_path))
    rank_all(replace(inputs, rankings=dict(inputs.rankings)))
    assert ranked == ["l1", "apib"]


def test_criteria_of_feature_maps_share_a_pass_before_a_sweep(tmp_path, monkeypatch):
    passes, observed = [], CRITERIA.get("apoz").rank.__globals__["observe"]

    def counted(model, groups, batches, requests):
        passes.append(len(requests))
        return observed(model, groups, batches, requests)

    monkeypatch.setitem(CRITERIA.get("apoz").rank.__globals__, "observe", counted)
    asked = experiment(tmp_path, criterion=["apoz", "hrank", "l1"])
    inputs = prepare(asked)
    assert passes == [3]  # apib, whose paths the rule looks at, is the third
    assert len(inputs.rankings) == 4
    prepare(asked)
    assert passes == [3]
