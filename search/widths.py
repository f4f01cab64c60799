"""The dimensions of the widths: a budget, a rule or a direction; and the widths that they mean, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    PolicyError,
    Ranking,
    RankingError,
    project,
)
from search.budgets import Budget, RuleWidths
from search.config import Experiment
from search.directions import FACTORS, Parametrisation, Proportions, Thresholds, by_group, by_stage, scaled
from search.errors import ExperimentError
from search.inputs import ranking_key, seen_placement
from search.sections import AllocationSpec

Criteria = Mapping[str, CriterionSpec]
"""Of each group."""

_UNITS = {"macs": "MACs", "params": "parameters"}


class WidthDimensions:
    """`budget`, and for searched widths the numbers that a direction is made of; see `Space`.

    Args:
        experiment: what is searched.
        groups: whose widths.
        cost: of the network.
        rankings: by `ranking_key`.
        blocks: behind how many modules losses can sit.
        latency: for budgets of latency.

    Raises:
        ExperimentError, RankingError: see `Space`.
    """

    def __init__(
        self,
        experiment: Experiment,
        groups: ChannelGroups,
        cost: CostModel,
        rankings: Mapping[str, Ranking],
        blocks: int,
        latency: LatencyModel | None,
    ) -> None:
        self._experiment, self._groups, self._cost = experiment, groups, cost
        self._rankings, self._blocks = dict(rankings), blocks
        self.least = {name: self._narrowest(name) for name in groups}
        self.budget = Budget(cost, experiment.search.budget.of, latency)
        limits = {name: experiment.constraints.get(name) for name in ("macs", "params")}
        self._limits = {name: int(limit.of(getattr(cost.full, name))) for name, limit in limits.items() if limit}
        self._rules: dict[tuple[str, str], RuleWidths] = {}
        self.low, self.high = self._ends()
        for allocation in experiment.search.rules:
            self._check_rule(allocation)

    def ask(
        self,
        trial: optuna.trial.BaseTrial,
        allocation: AllocationSpec,
        criteria: Criteria,
        auxiliary: AuxiliaryPlacement | None,
    ) -> dict[str, int]:
        """Ask for the budget and the searched widths, and return the widths that the answers mean."""
        rule = None if allocation.name == "searched" else self._rule(allocation)
        if rule is not None and not rule.budgeted:
            ranking = self._rule_ranking(rule, criteria, auxiliary)
            return self._within_limits(rule.widths(self._groups, self._cost, None, ranking))
        share = self.low if self.low == self.high else trial.suggest_float("budget", self.low, self.high)
        target = self._target(share)
        if rule is not None:
            return self._within_limits(self._met(self._rule_widths(allocation, criteria, auxiliary), target))
        way = self._parametrisation(criteria, auxiliary)
        direction = way.direction(trial, target, self._known_ranking(criteria, auxiliary))
        step, measure = self._experiment.search.widths.round_to, self.budget.measure
        return self._within_limits(project(self._groups, self._cost, direction, target, round_to=step, measure=measure))

    def answers(
        self, widths: Mapping[str, int], criteria: Criteria, auxiliary: AuxiliaryPlacement | None
    ) -> dict[str, Any]:
        """Return the answers that give some widths, or come near to them."""
        searched = next((rule for rule in self._experiment.search.allocation if rule.name == "searched"), None)
        found: dict[str, Any] = {}
        if searched is not None and len(self._experiment.search.allocation) > 1:
            found["allocation"] = str(searched)
        if self.low < self.high:
            found["budget"] = min(self.high, max(self.low, self.budget.spent(widths) / self.budget.full))
        if searched is not None:
            target = self._target(found.get("budget", self.low))
            way, ranking = self._parametrisation(criteria, auxiliary), self._known_ranking(criteria, auxiliary)
            found |= way.numbers(widths, target, ranking)
        return found

    def by_rule(self, allocation: AllocationSpec, share: float, criterion: CriterionSpec) -> dict[str, int]:
        """Return what a rule makes of a budget; see `Space.rule_widths`."""
        rule, criteria = self._rule(allocation), dict.fromkeys(self._groups, criterion)
        auxiliary = next(iter(self._experiment.search.auxiliary.known(self._blocks)), None)
        if not rule.budgeted:
            return rule.widths(self._groups, self._cost, None, self._rule_ranking(rule, criteria, auxiliary))
        return self._met(self._rule_widths(allocation, criteria, auxiliary), self._target(share))

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
        return max(self.budget.target(share), self.budget.spent(self.least))

    def _parametrisation(self, criteria: Criteria, auxiliary: AuxiliaryPlacement | None) -> Parametrisation:
        asked = self._experiment.search.widths
        if asked.per == "scores":
            return Thresholds(self._groups, self.least)
        prefix = "width" if asked.around is None else "factor"
        names = by_group(self._groups, prefix) if asked.per == "group" else by_stage(self._groups, prefix)
        if asked.around is None:
            bounds, full = (asked.minimum, 1.0), self._groups.widths
            return Proportions(self._groups, self.least, names, lambda _: full, bounds, log=False)
        near = self._rule_widths(asked.around, criteria, auxiliary).near
        return Proportions(self._groups, self.least, names, near, FACTORS, log=True)

    def _rule(self, allocation: AllocationSpec) -> Allocation:
        step = {"round_to": self._experiment.search.widths.round_to}
        options = (step if "round_to" in ALLOCATIONS.options(allocation.name) else {}) | allocation.options
        return ALLOCATIONS.build(allocation.name, **options)

    def _rule_ranking(
        self, rule: Allocation, criteria: Criteria, auxiliary: AuxiliaryPlacement | None
    ) -> Ranking | None:
        if rule.ranked_by is not None:
            return self._ranking(rule, rule.ranked_by, auxiliary)
        return self._known_ranking(criteria, auxiliary)

    def _rule_widths(
        self, allocation: AllocationSpec, criteria: Criteria, auxiliary: AuxiliaryPlacement | None
    ) -> RuleWidths:
        """Return a rule that remembers what it said, for each ranking that it looks at."""
        rule = self._rule(allocation)
        seen = "" if rule.ranked_by is not None or not rule.looks_at_ranking else repr((criteria, auxiliary))
        place = str(allocation), seen
        if place not in self._rules:
            ranking, step = self._rule_ranking(rule, criteria, auxiliary), self._experiment.search.widths.round_to
            self._rules[place] = RuleWidths(rule, self._groups, self.budget, ranking, self.least, step)
        return self._rules[place]

    def _narrowest(self, name: str) -> int:
        group, widths = self._groups[name], self._experiment.search.widths
        wish = max(group.minimum, math.ceil(Fraction(str(widths.minimum)) * group.width))
        step = group.step(widths.round_to)
        return min(group.width, step * math.ceil(wish / step))

    def _within_limits(self, widths: dict[str, int]) -> dict[str, int]:
        """Narrow widths in proportion until they cost no more than the limits allow."""
        step = self._experiment.search.widths.round_to
        for name, limit in self._limits.items():
            if getattr(self._cost.cost(widths), name) > limit:
                direction = scaled(widths, self.least, self._groups.widths)
                widths = project(self._groups, self._cost, direction, limit, round_to=step, measure=name)
        return widths

    def _ranking(
        self, rule: Allocation, criterion: CriterionSpec, auxiliary: AuxiliaryPlacement | None
    ) -> Ranking | None:
        """Return the ranking that a rule looks at in a policy with this criterion."""
        criterion = rule.ranked_by or criterion
        seen = seen_placement(self._experiment, criterion, auxiliary)
        return self._rankings.get(ranking_key(criterion, seen))

    def _known_ranking(self, criteria: Criteria, auxiliary: AuxiliaryPlacement | None) -> Ranking | None:
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

    # ── what no proposal could meet ──────────────────────────────────────────────────────────────────────────────────

    def _ends(self) -> tuple[float, float]:
        """Return the ends of the budget as parts of the baseline's cost.

        Raises:
            ExperimentError: a limit or a budget that the narrowest widths do not meet.
        """
        asked, least = self._experiment.search.budget, self._cost.cost(self.least)
        for name, limit in self._limits.items():
            full, needed = getattr(self._cost.full, name), getattr(least, name)
            if needed > limit:
                what = f"{needed} {_UNITS[name]} ({needed / full:.1%}), which the narrowest widths cost"
                raise ExperimentError(f"constraints.{name}: expected at least {what}, got {limit}")
        budget, most = self.budget, self._limits.get(self.budget.of)
        try:
            low, high = asked.within(budget.spent(self.least) / budget.full)
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
                        self._met(self._rule_widths(allocation, criteria, auxiliary), self._target(self.low))
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
            rule.widths(self._groups, self._cost, self._target(self.low), None)
        except RankingError as error:
            seen = f"criterion '{criterion.name}' sees losses whose places or weights are free"
            raise ExperimentError(f"search.auxiliary: {seen}: no ranking before the trial; {error}") from None
