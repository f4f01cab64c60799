import json
import math
import pickle

import optuna
import pytest
import torch
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from ray.tune.search.searcher import Searcher

from pruning import CRITERIA, CostModel, CriterionSpec, ModelSpec, Policy, RankingError, build_model, find_groups
from search.config import parse_experiment
from search.errors import ExperimentError
from search.inputs import ranking_key
from search.results import Metrics
from search.searcher import StudySearcher
from search.space import Space
from search.starts import make_starts
from search.study import create_study, enqueue
from search.surrogate import Ladder

EXAMPLE = torch.zeros(1, 3, 16, 16)
SPECS = [
    CriterionSpec(name="l1"),
    CriterionSpec(name="random"),
    CriterionSpec(name="random", options={"seed": 1}),
]


class Whole:
    """A network with its groups, cost model and rankings."""

    def __init__(self, model, example):
        self.model = model
        network = build_model(model)
        self.groups = find_groups(network, example)
        self.cost = CostModel(network, self.groups, example)
        ranked = [(spec, CRITERIA.build(spec.name, **spec.options).rank(network, self.groups)) for spec in SPECS]
        self.rankings = {ranking_key(spec): ranking for spec, ranking in ranked}

    def experiment(self, search, sections):
        return parse_experiment({"name": "x", "model": self.model.model_dump(), "search": search, **sections})

    def space(self, *, rankings=None, sections=None, **search):
        experiment = self.experiment({"groups": "inner", **search}, sections or {})
        searched = self.groups.matching(experiment.search.groups)
        return Space(experiment, self.groups, self.cost, searched, self.rankings if rankings is None else rankings)

    def macs(self, policy):
        return self.cost.cost(policy.widths).macs


@pytest.fixture(scope="module")
def resnet():
    return Whole(ModelSpec(name="resnet20"), EXAMPLE)


@pytest.fixture(scope="module")
def odd():
    """Widths that are no powers of two."""
    return Whole(ModelSpec(name="tiny:network", options={"widths": [100, 30]}), torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="module")
def grouped():
    """Channels that are several filters."""
    return Whole(ModelSpec(name="tiny:grouped"), torch.zeros(1, 1, 8, 8))


FILTERS = {"first": (4, 2), "last": (1,)}
"""Of a channel of each group of `tiny:grouped`, in every convolution."""


def draws(space, count=25, seed=0):
    """Yield the searched values and the policy of random trials."""
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    for _ in range(count):
        trial = study.ask()
        policy = space.suggest(trial)
        yield trial.params, policy


def test_equal_values_give_equal_policies(resnet):
    space = resnet.space(
        allocation=["searched", "uniform", "global"],
        criterion=[{"name": "l1"}, {"name": "random"}],
        recipe={"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "batch_size": [64, 128]},
        sections={"constraints": {"macs": "70%"}},
    )
    elsewhere = pickle.loads(pickle.dumps(space))
    for params, policy in draws(space):
        assert space.suggest(FixedTrial(params)) == policy
        assert elsewhere.suggest(FixedTrial(params)) == policy


def test_a_policy_is_for_the_whole_network_and_says_what_was_asked(resnet):
    space = resnet.space(groups=["layer1.*conv1", "layer3.0.conv1"], seed=7, sections={"recipe": {"epochs": 3}})
    widths = {"layer1.0.conv1": 5, "layer1.1.conv1": 16, "layer1.2.conv1": 8, "layer3.0.conv1": 9}
    answers = {f"width.{name}": width / resnet.groups[name].width for name, width in widths.items()}
    policy = space.suggest(FixedTrial(answers | {"budget": resnet.cost.cost(widths).macs / resnet.cost.full.macs}))
    policy.check(resnet.groups)
    assert policy.widths == widths
    assert (policy.model, policy.seed, policy.recipe.epochs) == (ModelSpec(name="resnet20"), 7, 3)


# ── widths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per", ["group", "stage"])
@pytest.mark.parametrize(("minimum", "round_to"), [("10%", 1), ("50%", 1), ("1%", 4), ("30%", 8), ("100%", 1)])
def test_widths_lie_between_the_narrowest_and_the_full_one_and_are_round(odd, resnet, per, minimum, round_to):
    for whole in (odd, resnet):
        space = whole.space(widths={"per": per, "minimum": minimum, "round_to": round_to})
        for _, policy in draws(space):
            for name, width in policy.widths.items():
                full = whole.groups[name].width
                least = -(-int(minimum[:-1]) * full // 100)
                assert min(full, round_to * math.ceil(least / round_to)) <= width <= full
                assert width % round_to == 0 or width == full


@pytest.mark.filterwarnings("ignore:search.sampler")
@pytest.mark.parametrize("sampler", ["random", "nsga2", "nsga3", "tpe", "gp"])
@pytest.mark.parametrize(
    "search",
    [
        {"widths": {"per": "group"}},
        {"widths": {"per": "stage", "around": "global"}, "budget": {"of": "params"}},
        {"widths": {"per": "scores"}, "allocation": ["searched", "uniform", "global"]},
    ],
    ids=["group", "stage", "scores"],
)
@pytest.mark.parametrize("round_to", [8, 16])
def test_every_layer_that_is_proposed_has_a_multiple_of_filters(grouped, tmp_path, sampler, search, round_to):
    search = {**search, "widths": {**search["widths"], "round_to": round_to}, "sampler": sampler, "trials": 9}
    space = grouped.space(**search)
    asked = grouped.experiment({"groups": "inner", **search}, {})
    study = create_study(tmp_path, asked)
    for start in make_starts(asked, space):
        enqueue(study, start)
    baseline = {"accuracy": 0.9, "loss": 0.3, "macs": grouped.cost.full.macs, "params": grouped.cost.full.params}
    searcher = StudySearcher(tmp_path, asked, space, baseline)
    for number in range(9):
        config = searcher.suggest(str(number))
        if config == Searcher.FINISHED:  # coarse steps leave few policies
            break
        policy = Policy.from_json(config["policy"])
        for name, width in policy.widths.items():
            whole = width == grouped.groups[name].width
            assert whole or all(width * filters % round_to == 0 for filters in FILTERS[name])
        cost = grouped.cost.cost(policy.widths)
        searcher.on_trial_complete(str(number), Metrics(0, number / 10, 1.0, cost.macs, cost.params).to_dict())
    assert number > 2


def test_the_surrogates_widths_are_multiples_of_filters(grouped):
    ladder = Ladder.of(grouped.groups, grouped.cost, {"first": 3}, round_to=8)
    assert dict(zip(ladder.names, map(list, ladder.rungs), strict=True)) == {
        "first": [4, 8, 12, 16],  # 8, 16, … filters behind it
        "last": [8, 16, 24, 32, 40],
    }


def test_the_narrowest_width_is_exact(odd):
    for percent in range(1, 101):
        space = odd.space(widths={"minimum": f"{percent}%"})
        assert space.least == {"first": percent, "second": -(-30 * percent // 100)}


def test_every_round_width_may_be_proposed(resnet):
    space = resnet.space(groups="layer1.0.conv1", widths={"minimum": "20%", "round_to": 4})
    seen = {policy.widths["layer1.0.conv1"] for _, policy in draws(space, 100)}
    assert seen == {4, 8, 12}  # all but the full width, which leaves no budget


def test_what_leaves_no_choice_is_not_asked(resnet):
    space = resnet.space(widths={"round_to": 64})
    ((params, policy),) = draws(space, 1)
    assert params == {}
    assert policy.widths == resnet.groups.only(policy.widths).widths


# ── limits and budgets ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per", ["group", "stage", "scores"])
@pytest.mark.parametrize("around", [None, "uniform", "global"])
@pytest.mark.parametrize("of", ["macs", "params"])
def test_searched_widths_meet_their_budget_by_construction(resnet, per, around, of):
    if per == "scores" and around:
        return
    space = resnet.space(groups="all", widths={"per": per, "around": around}, budget={"of": of, "maximum": "95%"})
    for params, policy in draws(space):
        full, spent = (getattr(cost, of) for cost in (resnet.cost.full, resnet.cost.cost(policy.widths)))
        assert 0.985 * params["budget"] <= spent / full <= params["budget"] + 1 / full
        for name, width in policy.widths.items():
            assert math.ceil(resnet.groups[name].width / 10) <= width <= resnet.groups[name].width


@pytest.mark.parametrize("per", ["group", "stage"])
@pytest.mark.parametrize("limit", ["25%", "45%", 2e6])
def test_no_budget_is_above_a_limit_on_macs(resnet, per, limit):
    space = resnet.space(groups="all", widths={"per": per}, sections={"constraints": {"macs": limit}})
    most = int(limit if isinstance(limit, float) else int(limit[:-1]) / 100 * resnet.cost.full.macs)
    spent = [resnet.macs(policy) for _, policy in draws(space, 40)]
    assert max(spent) <= most
    assert max(spent) > 0.9 * most


def test_a_limit_on_another_cost_than_the_budgets_narrows_in_proportion(resnet):
    search = {"groups": "all", "budget": {"minimum": "60%"}}
    free, bound = resnet.space(**search), resnet.space(**search, sections={"constraints": {"params": "50%"}})
    most, moved = resnet.cost.full.params // 2, 0
    for params, policy in draws(bound):
        wished = free.suggest(FixedTrial(params))
        if resnet.cost.cost(wished.widths).params <= most:
            assert policy == wished
            continue
        moved += 1
        assert 0.98 * most <= resnet.cost.cost(policy.widths).params <= most
        assert all(width <= wished.widths[name] + 1 for name, width in policy.widths.items())
    assert moved > 3


def test_a_limit_that_only_the_narrowest_widths_meet_gives_these(resnet):
    search = {"widths": {"minimum": "50%"}}
    least = resnet.space(**search).least
    bound = resnet.space(**search, sections={"constraints": {"macs": resnet.cost.cost(least).macs}})
    for _, policy in draws(bound, 5):
        assert policy.widths == least


def test_without_a_word_the_budget_starts_where_the_widths_can_begin(resnet):
    one = resnet.space(groups="layer1.0.conv1")
    lowest = resnet.cost.cost(one.least).macs / resnet.cost.full.macs
    assert one.shares == (pytest.approx(lowest), 1.0)
    assert resnet.space().shares == (0.2, 0.9)
    with pytest.raises(ExperimentError, match=r"^search.budget.minimum: expected 89.8% to 100%, .* got 30.0%$"):
        resnet.space(groups="layer1.0.conv1", budget="30%")


def test_round_widths_stay_round_under_a_limit(resnet):
    space = resnet.space(widths={"round_to": 4, "minimum": "20%"}, sections={"constraints": {"macs": "50%"}})
    for _, policy in draws(space):
        assert all(width % 4 == 0 for width in policy.widths.values())
        assert resnet.macs(policy) <= 0.5 * resnet.cost.full.macs


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_budget_is_spent_within_a_hundredth(resnet, allocation, share):
    space = resnet.space(groups="all", allocation=allocation)
    policy = space.suggest(FixedTrial({"budget": share}))
    assert 0.99 * share <= resnet.macs(policy) / resnet.cost.full.macs <= share


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_budget_is_spent_on_round_widths(resnet, allocation):
    space = resnet.space(groups="all", allocation=allocation, widths={"round_to": 8})
    for _, policy in draws(space, 5):
        assert all(width % 8 == 0 for width in policy.widths.values())


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_budget_over_the_limit_spends_the_limit(resnet, allocation):
    space = resnet.space(groups="all", allocation=allocation, sections={"constraints": {"macs": "40%"}})
    policy = space.suggest(FixedTrial({"budget": space.shares[1]}))
    assert 0.99 * 0.4 <= resnet.macs(policy) / resnet.cost.full.macs <= 0.4


def test_the_global_allocation_looks_at_the_scores_of_the_trials_criterion(resnet):
    space = resnet.space(allocation="global", criterion=["l1", "random"])
    widths = [space.suggest(FixedTrial({"criterion": name, "budget": 0.5})).widths for name in ("l1", "random")]
    assert widths[0] != widths[1]


@pytest.mark.parametrize("per", ["group", "stage"])
def test_a_limit_that_no_widths_meet_is_refused_at_once(resnet, per):
    widths = {"per": per, "minimum": "50%"}
    with pytest.raises(ExperimentError, match=r"^constraints.macs: expected at least \d+ MACs \(\d+\.\d%\), .* \d+$"):
        resnet.space(widths=widths, sections={"constraints": {"macs": "1%"}})


@pytest.mark.parametrize("allocation", ["searched", "uniform", "global"])
def test_a_budget_that_no_widths_meet_is_refused_at_once(resnet, allocation):
    search = {"groups": "layer3.2.conv1", "allocation": allocation}
    reason = r"expected \d+\.\d% to 100%, which the widths can reach, got 20.0%"
    with pytest.raises(ExperimentError, match=f"^search.budget.minimum: {reason}"):
        resnet.space(**search, budget={"minimum": "20%"})
    with pytest.raises(ExperimentError, match=f"^search.budget.maximum: {reason}"):
        resnet.space(**search, budget={"maximum": "20%"})


def test_a_budget_that_a_rule_does_not_meet_is_refused_only_if_it_was_asked_for(resnet):
    rule = {"name": "global", "options": {"minimum_share": 0.6}}
    with pytest.raises(
        ExperimentError, match=r"^search.budget.minimum: allocation 'global.*': expected \d+ to \d+ MACs"
    ):
        resnet.space(allocation=rule, budget={"minimum": "20%"})
    space = resnet.space(allocation=rule)
    policy = space.suggest(FixedTrial({"budget": space.shares[0]}))
    assert all(width >= 0.6 * resnet.groups[name].width for name, width in policy.widths.items())
    assert resnet.macs(policy) < 0.7 * resnet.cost.full.macs


def test_an_allocation_without_the_scores_that_it_needs_is_refused_at_once(resnet):
    with pytest.raises(RankingError, match=r"allocation 'global', group 'layer1.0.conv1': expected scores"):
        resnet.space(allocation="global", rankings={})


# ── the other dimensions ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("allocation", "conditional"), [("searched", False), (["searched", "uniform"], True)])
def test_dimensions_are_conditional_where_the_allocation_is_a_choice(resnet, allocation, conditional):
    space = resnet.space(allocation=allocation)
    assert space.conditional is conditional
    asked = {frozenset(params) for params, _ in draws(space)}
    widths = frozenset({"budget", *(f"width.{name}" for name in resnet.groups.matching(("inner",)))})
    assert asked == ({frozenset({"allocation", "budget"}), widths | {"allocation"}} if conditional else {widths})


def test_recipes_are_searched_by_span_and_by_choice(resnet):
    space = resnet.space(
        groups="layer1.0.conv1",
        sections={"recipe": {"momentum": 0.5, "epochs": 9}},
        recipe={
            "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "epochs": {"low": 1, "high": 3},
            "optimizer": ["sgd", "adamw"],
            "clip_norm": [None, 1.0],
            "milestones": [[0.5], [0.25, 0.75]],
            "weight_decay": 0.002,
            "augment": [True, False],
        },
    )
    recipes = [policy.recipe for _, policy in draws(space, 60)]
    assert {recipe.epochs for recipe in recipes} == {1, 2, 3}
    assert all(1e-4 <= recipe.learning_rate <= 1e-1 for recipe in recipes)
    assert 0.3 < sum(recipe.learning_rate < 10**-2.5 for recipe in recipes) / len(recipes) < 0.7  # log: half are below
    assert {recipe.optimizer for recipe in recipes} == {"sgd", "adamw"}
    assert {recipe.clip_norm for recipe in recipes} == {None, 1.0}
    assert {recipe.milestones for recipe in recipes} == {(0.5,), (0.25, 0.75)}
    assert {recipe.augment for recipe in recipes} == {True, False}
    assert {recipe.weight_decay for recipe in recipes} == {0.002}
    assert {recipe.momentum for recipe in recipes} == {0.5}
    params, _ = next(draws(space, 1))
    assert "recipe.weight_decay" not in params
    assert json.dumps(params)


def test_criteria_of_one_name_are_told_apart_by_their_options(resnet):
    specs = [spec.model_dump() for spec in SPECS]
    space = resnet.space(groups="layer1.0.conv1", criterion=specs)
    seen = {(params["criterion"], params.get("criterion.random")): policy.criterion for params, policy in draws(space)}
    assert seen == {("l1", None): SPECS[0], ("random", "{}"): SPECS[1], ("random", '{"seed": 1}'): SPECS[2]}
    alone = resnet.space(groups="layer1.0.conv1", criterion=specs[2])
    params, policy = next(draws(alone, 1))
    assert not [name for name in params if name.startswith("criterion")]
    assert policy.criterion == SPECS[2]
