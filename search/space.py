"""The searched dimensions: what Optuna is asked for, and the policy that the answers mean, and back."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import optuna

from pruning import (
    ALLOCATIONS,
    Allocation,
    AuxiliaryPlacement,
    ChannelGroups,
    CostModel,
    CriterionSpec,
    LatencyModel,
    MixedRanking,
    Policy,
    PolicyError,
    Ranking,
    RankingError,
    Recipe,
    even_positions,
    project,
)
from search.budgets import Budget, RuleWidths
from search.config import Experiment
from search.directions import FACTORS, Parametrisation, Proportions, Thresholds, by_group, by_stage, scaled
from search.errors import ExperimentError
from search.inputs import ranking_key, seen_placement
from search.sections import AllocationSpec, Span


class Space:
    """Asks a trial for its values and turns them into a policy; light enough to travel with the searcher.

    Dimensions, each only where there is something to choose: `allocation`; `budget` (part of the baseline's cost)
    unless the rule fixes the widths by itself; for searched widths `width.<group>` or `width.stage<full width>`,
    `factor.<group>` or `factor.stage<full width>` around a rule, `score.scale.stage<…>` and `score.shift.stage<…>`;
    `criterion` (for a stage or group `criterion.stage<…>`, `criterion.<group>`), and where a criterion is listed with
    several options `criterion.<name>` behind it; `recipe.<field>`; `auxiliary.count`, and if it is not 0
    `auxiliary.placement`, `auxiliary.head`, `auxiliary.weight`, and of free places `auxiliary.position.<k>of<count>`.

    Searched widths meet their budget by construction: the numbers are a direction, along which they are projected.

    Args:
        experiment: what is searched.
        groups: every group of the network.
        cost: its cost by widths.
        searched: names of the groups whose widths are searched.
        rankings: by `ranking_key`, for allocations that look at scores.
        blocks: the modules behind which auxiliary losses can sit.
        latency: for budgets of latency.

    Raises:
        ExperimentError: a limit, or a budget, that is less than the narrowest widths cost; an allocation that looks at
            a ranking which is not known before the trial.
        RankingError: an allocation that needs scores, and a criterion that has none.
    """

    def __init__(
        self,
        experiment: Experiment,
        groups: ChannelGroups,
        cost: CostModel,
        searched: tuple[str, ...],
        rankings: Mapping[str, Ranking],
        blocks: Sequence[str] = (),
        latency: LatencyModel | None = None,
    ) -> None:
        self._experiment = experiment
        self._all = groups
        self._groups = groups.only(searched)
        self._cost = cost
        self._rankings = dict(rankings)
        self._blocks = len(blocks)
        self._least = {name: self._narrowest(name) for name in self._groups}
        self._budget = Budget(cost, experiment.search.budget.of, latency)
        limits = {name: experiment.constraints.get(name) for name in ("macs", "params")}
        self._limits = {name: int(limit.of(getattr(cost.full, name))) for name, limit in limits.items() if limit}
        self._rules: dict[tuple[str, str], RuleWidths] = {}
        self._low, self._high = self._ends()
        for allocation in experiment.search.rules:
            self._check_rule(allocation)

    @property
    def conditional(self) -> bool:
        """Whether some dimensions exist only for some values of others."""
        search = self._experiment.search
        losses = search.auxiliary
        several = len(losses.placement) > 1 or len(losses.head) > 1 or losses.weight_is_searched
        hang = 0 in losses.count and len(losses.count) > 1 and several
        hang |= "free" in losses.placement and (len(losses.count) > 1 or len(losses.placement) > 1)
        names = [spec.name for spec in search.criterion]
        variants = 1 < len(set(names)) < len(names)
        return len(search.allocation) > 1 or variants or (hang and not losses.positions)

    @property
    def all_groups(self) -> ChannelGroups:
        """Every group of the network."""
        return self._all

    @property
    def groups(self) -> ChannelGroups:
        """The groups whose widths are searched."""
        return self._groups

    @property
    def least(self) -> dict[str, int]:
        """The narrowest widths."""
        return dict(self._least)

    @property
    def budget(self) -> Budget:
        """The cost that proposals meet."""
        return self._budget

    @property
    def shares(self) -> tuple[float, float]:
        """The ends of the budget, as parts of the baseline's cost, as far as widths and limits allow."""
        return self._low, self._high

    def suggest(self, trial: optuna.trial.BaseTrial, widths: Mapping[str, int] | None = None) -> Policy:
        """Ask for every dimension of one trial and return the policy.

        Args:
            trial: who answers.
            widths: the policy's, whatever widths the answers mean: of a policy that the space can only come near to.
        """
        search = self._experiment.search
        criteria = self._criteria(trial)
        auxiliary = self._auxiliary(trial)
        allocations = {str(allocation): allocation for allocation in search.allocation}
        allocation = allocations[_choice(trial, "allocation", list(allocations))]
        recipe = self._recipe(trial)
        meant = self._meant(trial, allocation, criteria, auxiliary)
        usual = Counter(ranking_key(spec) for spec in criteria.values()).most_common(1)[0][0]
        criterion = next(spec for spec in criteria.values() if ranking_key(spec) == usual)
        return Policy(
            model=self._experiment.model,
            network=self._all.signature,
            widths=meant if widths is None else dict(widths),
            criterion=criterion,
            criteria={name: spec for name, spec in criteria.items() if spec != criterion},
            auxiliary=auxiliary,
            recipe=recipe,
            seed=search.seed,
        )

    def near(self, policy: Policy) -> dict[str, Any]:
        """Return answers that give a policy, or one near to it; a dimension that cannot take its value is left out.

        Searched widths for each group come back exactly, where budget and bounds allow them; those for each stage or by
        scores are the nearest.
        """
        widths = self.searched_widths(policy)
        answers = self._criterion_answers(policy)
        allocation = next((rule for rule in self._experiment.search.allocation if rule.name == "searched"), None)
        if len(self._experiment.search.allocation) > 1 and allocation is not None:
            answers["allocation"] = str(allocation)
        if self._low < self._high:
            share = self._budget.spent(widths) / self._budget.full
            answers["budget"] = min(self._high, max(self._low, share))
        if allocation is not None:
            target = self._target(answers.get("budget", self._low))
            criteria = {name: policy.criteria.get(name, policy.criterion) for name in self._groups}
            way = self._parametrisation(criteria, policy.auxiliary)
            answers |= way.numbers(widths, target, self._known_ranking(criteria, policy.auxiliary))
        return answers

    def searched_widths(self, policy: Policy) -> dict[str, int]:
        """Return a policy's widths of the searched groups; others stay whole."""
        return self._groups.widths | {name: width for name, width in policy.widths.items() if name in self._groups}

    def policy_of(self, widths: Mapping[str, int], criterion: CriterionSpec) -> Policy:
        """Return a policy with these widths and this criterion, and nothing else."""
        model, network = self._experiment.model, self._all.signature
        return Policy(model=model, network=network, widths=dict(widths), criterion=criterion)

    def rule_widths(self, allocation: AllocationSpec, share: float, criterion: CriterionSpec) -> dict[str, int]:
        """Return what a rule makes of a budget, given as part of the baseline's cost.

        Raises:
            PolicyError: a budget that it cannot meet.
            RankingError: a ranking that it needs and that is not known before the trials.
        """
        rule, criteria = self._rule(allocation), dict.fromkeys(self._groups, criterion)
        auxiliary = next(iter(self._experiment.search.auxiliary.known(self._blocks)), None)
        if not rule.budgeted:
            return rule.widths(self._groups, self._cost, None, self._rule_ranking(rule, criteria, auxiliary))
        return self._met(self._rule_widths(allocation, criteria, auxiliary), self._target(share))

    def only_policy(self) -> Policy:
        """Return the policy of a space with nothing to choose.

        Raises:
            ExperimentError: a dimension that is searched.
        """
        try:
            return self.suggest(_NothingToChoose({}))
        except _ChoiceError as error:
            raise ExperimentError(f"expected one policy, got a search over '{error}'; fix it in the file") from None

    def _criteria(self, trial: optuna.trial.BaseTrial) -> dict[str, CriterionSpec]:
        """Return the criterion of each group."""
        suffixes = self._criterion_suffixes()
        asked = {suffix: self._criterion(trial, suffix) for suffix in dict.fromkeys(suffixes.values())}
        return {name: asked[suffix] for name, suffix in suffixes.items()}

    def _criterion(self, trial: optuna.trial.BaseTrial, suffix: str) -> CriterionSpec:
        variants = self._variants()
        name = _choice(trial, f"criterion{suffix}", list(variants))
        return variants[name][_choice(trial, f"criterion.{name}{suffix}", list(variants[name]))]

    def _variants(self) -> dict[str, dict[str, CriterionSpec]]:
        """Return the criteria that are searched, by name and then by options."""
        found: dict[str, dict[str, CriterionSpec]] = {}
        for spec in self._experiment.search.criterion:
            found.setdefault(spec.name, {})[json.dumps(spec.options, sort_keys=True)] = spec
        return found

    def _criterion_suffixes(self) -> dict[str, str]:
        """Return by group what follows `criterion` in the name of its dimension."""
        per = self._experiment.search.criterion_per
        if per == "group":
            return by_group(self._groups, "")
        return by_stage(self._groups, "") if per == "stage" else dict.fromkeys(self._groups, "")

    def _criterion_answers(self, policy: Policy) -> dict[str, Any]:
        variants, answers = self._variants(), dict[str, Any]()
        for name, suffix in self._criterion_suffixes().items():
            spec = policy.criteria.get(name, policy.criterion)
            options = json.dumps(spec.options, sort_keys=True)
            if options not in variants.get(spec.name, {}):
                continue
            if len(variants) > 1:
                answers.setdefault(f"criterion{suffix}", spec.name)
            if len(variants[spec.name]) > 1:
                answers.setdefault(f"criterion.{spec.name}{suffix}", options)
        return answers

    def _auxiliary(self, trial: optuna.trial.BaseTrial) -> AuxiliaryPlacement | None:
        asked = self._experiment.search.auxiliary
        positions = asked.positions
        if not positions:
            count = _choice(trial, "auxiliary.count", list(asked.count))
            if count == 0:
                return None
            free = _choice(trial, "auxiliary.placement", list(asked.placement)) == "free"
            positions = self._free(trial, count) if free else even_positions(self._blocks, count)
        head = _choice(trial, "auxiliary.head", list(asked.head))
        if isinstance(asked.weight, Span):
            weight = _number(trial, "auxiliary.weight", asked.weight, whole=False)
        else:
            weight = _choice(trial, "auxiliary.weight", asked.weight)
        return asked.placement_of(positions, head, weight)

    def _free(self, trial: optuna.trial.BaseTrial, count: int) -> tuple[int, ...]:
        """Ask for `count` different blocks, never the last one.

        Every answer is a set: sorted numbers that may repeat, moved apart by one each.
        """
        names = [f"auxiliary.position.{number}of{count}" for number in range(1, count + 1)]
        drawn = sorted(trial.suggest_int(name, 1, self._blocks - count) for name in names)
        return tuple(number + before for before, number in enumerate(drawn))

    def _ranking(
        self, rule: Allocation, criterion: CriterionSpec, auxiliary: AuxiliaryPlacement | None
    ) -> Ranking | None:
        """Return the ranking that a rule looks at in a policy with this criterion."""
        criterion = rule.ranked_by or criterion
        seen = seen_placement(self._experiment, criterion, auxiliary)
        return self._rankings.get(ranking_key(criterion, seen))

    def _known_ranking(
        self, criteria: Mapping[str, CriterionSpec], auxiliary: AuxiliaryPlacement | None
    ) -> Ranking | None:
        """Return the ranking of a policy, as far as it is known before the trial."""
        keys = {
            name: ranking_key(spec, seen_placement(self._experiment, spec, auxiliary))
            for name, spec in criteria.items()
        }
        if not all(key in self._rankings for key in keys.values()):
            return None
        if len(set(keys.values())) == 1:
            return self._rankings[next(iter(keys.values()))]
        return MixedRanking({name: self._rankings[key] for name, key in keys.items()})

    def _recipe(self, trial: optuna.trial.BaseTrial) -> Recipe:
        values = self._experiment.recipe.model_dump()
        for field, choices in self._experiment.search.recipe.items():
            name = f"recipe.{field}"
            if isinstance(choices, list):
                values[field] = (
                    choices[_choice(trial, name, list(range(len(choices))))]
                    if _nested(choices)
                    else (_choice(trial, name, choices))
                )
            else:
                values[field] = _number(trial, name, choices, whole=Recipe.model_fields[field].annotation is int)
        return Recipe.model_validate(values)

    # ── widths ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _meant(
        self,
        trial: optuna.trial.BaseTrial,
        allocation: AllocationSpec,
        criteria: Mapping[str, CriterionSpec],
        auxiliary: AuxiliaryPlacement | None,
    ) -> dict[str, int]:
        """Return the widths that the answers mean."""
        rule = None if allocation.name == "searched" else self._rule(allocation)
        if rule is not None and not rule.budgeted:
            ranking = self._rule_ranking(rule, criteria, auxiliary)
            return self._within_limits(rule.widths(self._groups, self._cost, None, ranking))
        share = self._low if self._low == self._high else trial.suggest_float("budget", self._low, self._high)
        target = self._target(share)
        if rule is not None:
            return self._within_limits(self._met(self._rule_widths(allocation, criteria, auxiliary), target))
        way = self._parametrisation(criteria, auxiliary)
        direction = way.direction(trial, target, self._known_ranking(criteria, auxiliary))
        step, measure = self._experiment.search.widths.round_to, self._budget.measure
        return self._within_limits(project(self._groups, self._cost, direction, target, round_to=step, measure=measure))

    def _met(self, rule: RuleWidths, target: int) -> dict[str, int]:
        """Return a rule's widths at a budget; where nobody asked for so small a one, at the least that it meets.

        Raises:
            PolicyError: a budget that the rule cannot meet.
        """
        try:
            return rule.exact(target)
        except PolicyError:
            if self._experiment.search.budget.minimum is not None:
                raise
            return {name: round(width) for name, width in rule.near(target).items()}

    def _target(self, share: float) -> int:
        """Return a part of the baseline's cost, at least what the narrowest widths cost."""
        return max(self._budget.target(share), self._budget.spent(self._least))

    def _parametrisation(
        self, criteria: Mapping[str, CriterionSpec], auxiliary: AuxiliaryPlacement | None
    ) -> Parametrisation:
        asked = self._experiment.search.widths
        if asked.per == "scores":
            return Thresholds(self._groups, self._least)
        prefix = "width" if asked.around is None else "factor"
        names = by_group(self._groups, prefix) if asked.per == "group" else by_stage(self._groups, prefix)
        if asked.around is None:
            bounds, full = (asked.minimum, 1.0), self._groups.widths
            return Proportions(self._groups, self._least, names, lambda _: full, bounds, log=False)
        near = self._rule_widths(asked.around, criteria, auxiliary).near
        return Proportions(self._groups, self._least, names, near, FACTORS, log=True)

    def _rule(self, allocation: AllocationSpec) -> Allocation:
        step = {"round_to": self._experiment.search.widths.round_to}
        options = (step if "round_to" in ALLOCATIONS.options(allocation.name) else {}) | allocation.options
        return ALLOCATIONS.build(allocation.name, **options)

    def _rule_ranking(
        self, rule: Allocation, criteria: Mapping[str, CriterionSpec], auxiliary: AuxiliaryPlacement | None
    ) -> Ranking | None:
        if rule.ranked_by is not None:
            return self._ranking(rule, rule.ranked_by, auxiliary)
        return self._known_ranking(criteria, auxiliary)

    def _rule_widths(
        self, allocation: AllocationSpec, criteria: Mapping[str, CriterionSpec], auxiliary: AuxiliaryPlacement | None
    ) -> RuleWidths:
        """Return a rule that remembers what it said, for each ranking that it looks at."""
        rule = self._rule(allocation)
        seen = "" if rule.ranked_by is not None or not rule.looks_at_ranking else repr((criteria, auxiliary))
        place = str(allocation), seen
        if place not in self._rules:
            ranking, step = self._rule_ranking(rule, criteria, auxiliary), self._experiment.search.widths.round_to
            self._rules[place] = RuleWidths(rule, self._groups, self._budget, ranking, self._least, step)
        return self._rules[place]

    def _narrowest(self, name: str) -> int:
        group, widths = self._groups[name], self._experiment.search.widths
        wish = max(group.minimum, math.ceil(Fraction(str(widths.minimum)) * group.width))
        return min(group.width, widths.round_to * math.ceil(wish / widths.round_to))

    def _within_limits(self, widths: dict[str, int]) -> dict[str, int]:
        """Narrow widths in proportion until they cost no more than the limits allow."""
        step = self._experiment.search.widths.round_to
        for name, limit in self._limits.items():
            if getattr(self._cost.cost(widths), name) > limit:
                direction = scaled(widths, self._least, self._groups.widths)
                widths = project(self._groups, self._cost, direction, limit, round_to=step, measure=name)
        return widths

    # ── what no proposal could meet ──────────────────────────────────────────────────────────────────────────────────

    def _ends(self) -> tuple[float, float]:
        """Return the ends of the budget as parts of the baseline's cost.

        Raises:
            ExperimentError: a limit or a budget that the narrowest widths do not meet.
        """
        asked, least = self._experiment.search.budget, self._cost.cost(self._least)
        for name, limit in self._limits.items():
            full, needed = getattr(self._cost.full, name), getattr(least, name)
            if needed > limit:
                what = f"{needed} {_UNITS[name]} ({needed / full:.1%}), which the narrowest widths cost"
                raise ExperimentError(f"constraints.{name}: expected at least {what}, got {limit}")
        budget, most = self._budget, self._limits.get(self._budget.of)
        try:
            low, high = asked.within(budget.spent(self._least) / budget.full)
        except ValueError as error:
            raise ExperimentError(f"search.budget.{error}") from None
        if most is not None:
            high = min(high, most / budget.full)
        return min(low, high), high

    def _check_rule(self, allocation: AllocationSpec) -> None:
        """Ask a rule for the smallest budget, with every ranking that it may look at."""
        rule = self._rule(allocation)
        for criterion in self._experiment.search.criterion:
            criteria = dict.fromkeys(self._groups, criterion)
            for auxiliary in self._experiment.search.auxiliary.known(self._blocks):
                try:
                    if rule.budgeted:
                        self._met(self._rule_widths(allocation, criteria, auxiliary), self._target(self._low))
                    else:
                        rule.widths(self._groups, self._cost, None, self._rule_ranking(rule, criteria, auxiliary))
                except PolicyError as error:
                    reason = str(error).removeprefix("budget: ")
                    raise ExperimentError(f"search.budget.minimum: allocation '{allocation}': {reason}") from None
            self._check_without_ranking(rule, criterion)

    def _check_without_ranking(self, rule: Allocation, criterion: CriterionSpec) -> None:
        """Refuse a rule that needs a ranking where rankings are made only when a trial asks for them."""
        criterion, some = rule.ranked_by or criterion, AuxiliaryPlacement(positions=1)
        late = self._experiment.search.auxiliary.some_are_free and seen_placement(self._experiment, criterion, some)
        if not (late and rule.looks_at_ranking):
            return
        try:
            rule.widths(self._groups, self._cost, self._target(self._low), None)
        except RankingError as error:
            seen = f"criterion '{criterion.name}' sees losses whose places or weights are free"
            raise ExperimentError(f"search.auxiliary: {seen}: no ranking before the trial; {error}") from None


_UNITS = {"macs": "MACs", "params": "parameters"}


class _ChoiceError(Exception):
    """A dimension that has more than one value."""


class _NothingToChoose(optuna.trial.FixedTrial):
    """A trial that has no answers."""

    def _suggest(self, name: str, distribution: optuna.distributions.BaseDistribution) -> Any:  # noqa: ARG002
        raise _ChoiceError(name)


def _choice(trial: optuna.trial.BaseTrial, name: str, choices: list[Any]) -> Any:
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def _nested(choices: list[Any]) -> bool:
    return any(isinstance(choice, (list, dict)) for choice in choices)


def _number(trial: optuna.trial.BaseTrial, name: str, span: Span, *, whole: bool) -> float:
    if whole:
        return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(name, span.low, span.high, log=span.log)
