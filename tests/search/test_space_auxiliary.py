"""Auxiliary losses as dimensions of the search, allocations with options, and spaces with nothing to choose."""

import itertools

import optuna
import pytest
import tiny
import torch

from pruning import (
    CRITERIA,
    AuxiliaryPlacement,
    CostModel,
    CriterionSpec,
    ModelSpec,
    PruningError,
    build_model,
    find_groups,
)
from search.errors import ExperimentError
from search.inputs import ranking_key
from search.prepare import prepare
from search.space import Space

BLOCKS = tuple(f"blocks.{number}" for number in range(6))
EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def parts():
    model = ModelSpec(name="tiny:blocks", options={"count": 6})
    network = build_model(model)
    groups = find_groups(network, EXAMPLE)
    return groups, CostModel(network, groups, EXAMPLE), CRITERIA.build("l1").rank(network, groups)


@pytest.fixture
def space(parts, tmp_path):
    groups, cost, ranking = parts

    def make(rankings=None, **search):
        experiment = tiny.experiment(tmp_path, model="tiny:blocks", search={"groups": "inner", **search})
        known = {ranking_key(CriterionSpec(name="l1")): ranking} if rankings is None else rankings
        return Space(experiment, groups, cost, groups.matching(("inner",)), known, BLOCKS)

    return make


def drawn(space, count=60):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append((space.suggest(trial), trial.params))
    return found


def test_without_a_word_there_are_no_auxiliary_losses_and_no_dimension_of_them(space):
    for policy, params in drawn(space(), 5):
        assert policy.auxiliary is None
        assert not [name for name in params if name.startswith("auxiliary")]


def test_even_places_are_those_of_the_formula(space):
    found = {params["auxiliary.count"]: policy.auxiliary for policy, params in drawn(space(auxiliary=[0, 1, 2]))}
    assert found.keys() == {0, 1, 2}
    assert found[0] is None
    assert found[1] == AuxiliaryPlacement(kind="explicit", positions=(4,))
    assert found[2] == AuxiliaryPlacement(kind="explicit", positions=(3, 5))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_free_places_reach_every_subset_and_nothing_else(space, count):
    free = space(auxiliary={"count": count, "placement": "free"})
    names = [f"auxiliary.position.{number}of{count}" for number in range(1, count + 1)]
    widths = {"budget": 0.8, **{f"width.blocks.{block}.conv1": 1.0 for block in range(6)}}
    found = set()
    for numbers in itertools.product(range(1, 6 - count + 1), repeat=count):
        params = dict(zip(names, numbers, strict=True)) | widths
        found.add(free.suggest(optuna.trial.FixedTrial(params)).auxiliary.positions)
    assert found == set(itertools.combinations(range(1, 6), count))


def test_dimensions_exist_only_where_there_is_something_to_choose(space):
    searched = space(auxiliary={"count": [0, 2], "placement": ["even", "free"], "weight": {"low": 0.1, "high": 1}})
    asked = {frozenset(name for name in params if name.startswith("auxiliary.")) for _, params in drawn(searched)}
    positions = {"auxiliary.position.1of2", "auxiliary.position.2of2"}
    some = {"auxiliary.count", "auxiliary.placement", "auxiliary.weight"}
    assert asked == {frozenset({"auxiliary.count"}), frozenset(some), frozenset(some | positions)}
    assert searched.conditional


@pytest.mark.parametrize(
    ("auxiliary", "conditional"),
    [
        ({"count": [0, 1]}, False),
        ({"count": 2, "placement": "free"}, False),
        ({"count": [1, 2], "placement": "free"}, True),
        ({"count": 2, "placement": ["even", "free"]}, True),
        ({"count": [1, 2], "weight": [0.5, 1]}, False),
        ({"count": [0, 2], "weight": [0.5, 1]}, True),
        ({"positions": [1, "blocks.3"], "weight": [0.5, 1]}, False),
    ],
)
def test_it_knows_whether_dimensions_hang_on_others(space, auxiliary, conditional):
    searched = space(auxiliary=auxiliary)
    assert searched.conditional is conditional
    assert (len({frozenset(params) for _, params in drawn(searched)}) > 1) <= conditional


def test_places_weight_and_head_can_be_fixed(space):
    fixed = space(auxiliary={"positions": [2, "blocks.4"], "head": "ccp", "weight": 0.25})
    for policy, params in drawn(fixed, 3):
        expected = {"kind": "explicit", "positions": (2, "blocks.4"), "head": "ccp", "weight": 0.25}
        assert policy.auxiliary.model_dump() == expected
        assert not [name for name in params if name.startswith("auxiliary")]


def test_equal_values_give_equal_policies(space):
    searched = space(
        auxiliary={"count": [0, 1, 2, 3], "placement": ["even", "free"], "weight": {"low": 0.1, "high": 1}}
    )
    for policy, params in drawn(searched, 20):
        assert searched.suggest(optuna.trial.FixedTrial(params)) == policy


def test_a_rule_that_looks_at_rankings_is_refused_where_they_are_made_too_late(space):
    asked = {"criterion": "ccp", "allocation": "global", "auxiliary": {"count": 2, "placement": "free"}}
    with pytest.raises(
        ExperimentError, match=r"^search.auxiliary: criterion 'ccp' sees losses whose .* no ranking before"
    ):
        space(**asked)
    space(**asked | {"criterion": "l1"})  # does not look at them


# ── allocations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_allocations_take_options_and_are_told_apart_by_them(space):
    rates = [{"name": "uniform", "options": {"rate": rate}} for rate in (0.5, 0.25)]
    found = {params["allocation"]: policy.widths for policy, params in drawn(space(allocation=["uniform", *rates]))}
    assert found.keys() == {"uniform", "uniform(rate=0.5)", "uniform(rate=0.25)"}
    assert set(found["uniform(rate=0.5)"].values()) == {3}
    assert set(found["uniform(rate=0.25)"].values()) == {5}


def test_a_rule_that_fixes_the_widths_asks_for_no_budget(space):
    fixed = space(allocation={"name": "uniform", "options": {"rate": 0.5}})
    ((policy, params),) = drawn(fixed, 1)
    assert params == {}
    assert fixed.only_policy() == policy


@pytest.mark.parametrize(
    ("search", "dimension"),
    [
        ({}, "budget"),
        ({"budget": "80%"}, "width.blocks.0.conv1"),
        ({"allocation": "uniform"}, "budget"),
        ({"allocation": {"name": "uniform", "options": {"rate": 0.5}}, "auxiliary": [0, 1]}, "auxiliary.count"),
        ({"allocation": {"name": "uniform", "options": {"rate": 0.5}}, "criterion": ["l1", "l2"]}, "criterion"),
    ],
)
def test_a_space_with_a_choice_has_not_one_policy(space, search, dimension):
    with pytest.raises(ExperimentError, match=f"^expected one policy, got a search over '{dimension}'"):
        space(**search).only_policy()


def test_a_budget_of_one_value_is_no_choice(space):
    policy = space(allocation="uniform", budget={"minimum": "50%", "maximum": "50%"}).only_policy()
    assert set(policy.widths.values()) < {1, 2, 3, 4, 5, 6}


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("auxiliary", "reason"),
    [
        ({"count": 3}, r"auxiliary positions: expected one of 1, 2 heads for 4 blocks, got 3 heads"),
        ({"count": 4, "placement": "free"}, r"search.auxiliary.count: expected at most 3 losses for 4 blocks, got 4"),
        ({"positions": [5]}, r"auxiliary positions: expected block numbers from 1 to 4, got 5"),
        ({"positions": [2, "blocks.1"]}, r"auxiliary positions: expected each place once, got 'blocks.1' twice"),
        ({"positions": ["blocks.1.conv1"]}, r"auxiliary head of 'blocks.1.conv1': expected a place between blocks"),
        ({"positions": ["blocks.9"]}, r"unknown module 'blocks.9'"),
    ],
)
def test_losses_that_do_not_fit_the_network_are_refused_before_anything_is_trained(tmp_path, auxiliary, reason):
    with pytest.raises((ExperimentError, PruningError), match=reason):
        prepare(tiny.experiment(tmp_path, model="tiny:blocks", search={"auxiliary": auxiliary}))
    assert not any(tmp_path.iterdir())


def test_a_network_without_blocks_is_refused_where_losses_are_to_be_placed(tmp_path):
    with pytest.raises(PruningError, match=r"^auxiliary positions: expected a network of blocks"):
        prepare(tiny.experiment(tmp_path, search={"auxiliary": 1}))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("auxiliary", "reason"),
    [
        (
            {"count": -1},
            r"^search.auxiliary.count.0: expected greater than or equal to 0, got -1",
        ),
        ({"weight": 0}, r"^search.auxiliary.weight: expected weights above 0, got 0"),
        ({"weight": {"low": 0, "high": 1}}, r"^search.auxiliary.weight: expected weights above 0, got 0"),
        ({"count": 2, "positions": [1]}, r"^search.auxiliary: expected positions or count, got both"),
        ({"places": [1]}, r"^search.auxiliary.places: unknown key"),
        ({"placement": "evn"}, r"^search.auxiliary.placement.0: .*'even'"),
    ],
)
def test_a_mistake_about_losses_names_its_place(tmp_path, auxiliary, reason):
    with pytest.raises(ExperimentError, match=reason):
        tiny.experiment(tmp_path, search={"auxiliary": auxiliary})
