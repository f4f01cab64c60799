"""Searched widths as numbers, and back."""

from itertools import pairwise

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from pruning import CRITERIA, CostModel, CriterionSpec, ModelSpec, RankingError, build_model, find_groups
from search.config import parse_experiment
from search.directions import Thresholds, scaled
from search.inputs import ranking_key
from search.space import Space

MODEL = ModelSpec(name="resnet20")
NETWORK = build_model(MODEL)
GROUPS = find_groups(NETWORK, torch.zeros(1, 3, 16, 16))
COST = CostModel(NETWORK, GROUPS, torch.zeros(1, 3, 16, 16))
L1, FPGM = CriterionSpec(name="l1"), CriterionSpec(name="fpgm")
RANKINGS = {ranking_key(spec): CRITERIA.build(spec.name).rank(NETWORK, GROUPS) for spec in (L1, FPGM)}


def space(groups="inner", **search):
    asked = {"groups": groups, "start": [], **search}
    experiment = parse_experiment({"name": "x", "model": MODEL.model_dump(), "search": asked})
    return Space(experiment, GROUPS, COST, GROUPS.matching(experiment.search.groups), RANKINGS)


def draws(asked, count=20, seed=0):
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    for _ in range(count):
        trial = study.ask()
        policy = asked.suggest(trial)
        yield trial.params, policy


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("groups", ["inner", "all"])
def test_widths_for_each_group_come_back_exactly(groups, round_to):
    asked = space(groups, widths={"round_to": round_to}, budget={"maximum": "100%"}, criterion=["l1", "fpgm"])
    for params, policy in draws(asked):
        answers = asked.near(policy)
        assert asked.suggest(FixedTrial(answers)) == policy
        assert answers.keys() == params.keys()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_any_widths_above_the_narrowest_can_be_said_for_each_group(parts):
    asked = space(budget={"minimum": "15%", "maximum": "100%"})
    narrow, full = asked.least, asked.groups.widths
    widths = {
        name: least + round(part * (full[name] - least))
        for (name, least), part in zip(narrow.items(), parts, strict=True)
    }
    if COST.cost(widths).macs < 0.15 * COST.full.macs:
        return
    policy = asked.policy_of(widths, L1)
    assert asked.suggest(FixedTrial(asked.near(policy))).widths == widths


def test_widths_around_a_rule_come_back_exactly_where_they_are_not_far_from_it():
    asked = space(widths={"around": "global"}, budget={"minimum": "30%", "maximum": "80%"})
    exact = 0
    for _, policy in draws(asked, 30):
        answers = asked.near(policy)
        again = asked.suggest(FixedTrial(answers))
        exact += again == policy
        factors = [value for name, value in answers.items() if name.startswith("factor.")]
        if all(0.5 < factor < 2 for factor in factors):
            assert again == policy
    assert exact >= 10


@pytest.mark.parametrize("per", ["stage", "scores"])
def test_coarser_ways_come_near(per):
    asked = space(widths={"per": per}, budget={"minimum": "30%", "maximum": "90%"})
    for params, policy in draws(asked):
        answers = asked.near(policy)
        assert answers.keys() == params.keys()
        again = asked.suggest(FixedTrial(answers))
        change = [abs(again.widths[name] - width) / GROUPS[name].width for name, width in policy.widths.items()]
        assert np.mean(change) < (0.02 if per == "stage" else 0.15)
        assert abs(COST.cost(again.widths).macs / COST.cost(policy.widths).macs - 1) < 0.02


def test_given_widths_are_the_policys_whatever_the_answers_mean():
    asked = space(widths={"per": "stage"})
    policy = asked.policy_of({name: 3 + number for number, name in enumerate(asked.groups)}, L1)
    assert asked.suggest(FixedTrial(asked.near(policy)), policy.widths).widths == policy.widths


def test_a_stage_shares_one_part_of_the_full_width():
    for params, policy in draws(space("inner", widths={"per": "stage"})):
        assert set(params) == {"budget", "width.stage16", "width.stage32", "width.stage64"}
        for full in (16, 32, 64):
            widths = [width for name, width in policy.widths.items() if GROUPS[name].width == full]
            assert max(widths) - min(widths) <= 3  # what is left of the budget goes to single groups


def test_the_direction_has_the_proportions_that_the_numbers_say():
    points = {"a": 8.0, "b": 2.0}
    way = scaled(points, {"a": 1, "b": 1}, {"a": 16, "b": 16})
    assert way(0) == {"a": 1, "b": 1}
    assert way(0.5) == points
    assert way(0.6) == {"a": pytest.approx(12), "b": pytest.approx(3)}
    assert way(1) == {"a": 16, "b": 16}
    steps = [way(t) for t in np.linspace(0, 1, 101)]
    assert all(before[name] <= after[name] for before, after in pairwise(steps) for name in points)


def test_thresholds_keep_the_channels_above_one_threshold():
    way = Thresholds(GROUPS, dict.fromkeys(GROUPS, 1))
    ranking = RANKINGS[ranking_key(L1)]
    answers = {}
    for stage, scale, shift in ((16, 2.0, 0.3), (32, 0.5, 0.0), (64, 1.0, -0.2)):
        answers |= {f"score.scale.stage{stage}": scale, f"score.shift.stage{stage}": shift}
    direction = way.direction(FixedTrial(answers), 0, ranking)
    moved = {}
    for name, group in GROUPS.items():
        scores = ranking.scores[name] / ranking.scores[name].abs().mean()
        moved[name] = answers[f"score.scale.stage{group.width}"] * scores + answers[f"score.shift.stage{group.width}"]
    every = torch.cat([*moved.values()])
    for t in (0.2, 0.5, 0.9):
        threshold = every.sort(descending=True).values[round(t * len(every)) - 1]
        expected = {name: max(1, int((scores >= threshold).sum())) for name, scores in moved.items()}
        assert direction(t) == expected


def test_thresholds_need_scores():
    way = Thresholds(GROUPS, dict.fromkeys(GROUPS, 1))
    with pytest.raises(RankingError, match=r"search.widths.per scores, group .*: expected scores, got no ranking"):
        way.direction(
            FixedTrial({f"score.{what}.stage{n}": 1.0 for what in ("scale", "shift") for n in (16, 32, 64)}), 0, None
        )


def test_a_criterion_for_each_stage_or_group():
    by_stage = space(criterion=["l1", "fpgm"], criterion_per="stage")
    by_group = space(criterion=["l1", "fpgm"], criterion_per="group")
    mixed = 0
    for params, policy in [*draws(by_stage), *draws(by_group)]:
        names = {name for name in params if name.startswith("criterion")}
        assert len(names) in (3, 9)
        for group in policy.widths:
            spec = policy.criteria.get(group, policy.criterion)
            suffix = group if len(names) == 9 else f"stage{GROUPS[group].width}"
            assert spec.name == params[f"criterion.{suffix}"]
        counts = [
            [policy.criteria.get(group, policy.criterion) for group in policy.widths].count(c) for c in (L1, FPGM)
        ]
        assert policy.criterion == (L1, FPGM)[int(counts[1] > counts[0])]
        mixed += bool(policy.criteria)
        asked = by_group if len(names) == 9 else by_stage
        assert asked.suggest(FixedTrial(asked.near(policy))) == policy
    assert mixed > 20


def test_options_of_a_criterion_hang_on_its_name():
    asked = space(criterion=["l1", {"name": "random", "choices": {"seed": [0, 1, 2]}}])
    assert asked.conditional
    seen = set()
    for params, policy in draws(asked, 40):
        assert ("criterion.random" in params) == (params["criterion"] == "random")
        assert asked.suggest(FixedTrial(asked.near(policy))).criterion == policy.criterion
        seen.add((policy.criterion.name, policy.criterion.options.get("seed")))
    assert seen == {("l1", None), ("random", 0), ("random", 1), ("random", 2)}


def test_a_single_dimension_of_widths_is_not_asked():
    ((params, policy),) = draws(space("layer1.0.conv1", budget={"minimum": "97%", "maximum": "98%"}), 1)
    assert set(params) == {"budget"}
    assert COST.cost(policy.widths).macs <= params["budget"] * COST.full.macs


def test_log_numbers_of_a_rule_are_factors_between_a_half_and_two():
    names = set()
    for params, _ in draws(space(widths={"around": "uniform", "per": "stage"}), 50):
        factors = {name: value for name, value in params.items() if name.startswith("factor.")}
        names |= factors.keys()
        assert all(0.5 <= factor <= 2 for factor in factors.values())
    assert names == {"factor.stage16", "factor.stage32", "factor.stage64"}
