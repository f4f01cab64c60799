"""The searched dimensions: what Optuna is asked for, and the policy that the answers mean."""

from __future__ import annotations

import math
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
    Policy,
    PolicyError,
    Ranking,
    RankingError,
    Recipe,
    even_positions,
    project,
)
from search.config import Experiment
from search.errors import ExperimentError
from search.inputs import ranking_key, seen_placement
from search.sections import AllocationSpec, Span


class Space:
    """Asks a trial for its values and turns them into a policy; light enough to travel with the searcher.

    Dimensions, each only where there is something to choose: `allocation`; `width.<group>` (channels kept) or
    `width.stage<full width>` (part kept) if the allocation is `searched`, else `budget` (part of the baseline's MACs)
    unless the allocation fixes the widths by itself; `criterion`; `recipe.<field>`; `auxiliary.count`, and if it is not
    0 `auxiliary.placement`, `auxiliary.head`, `auxiliary.weight`, and of free places `auxiliary.position.<k>of<count>`.

    Widths over a limit on MACs are moved back along the line to the narrowest widths until they meet it.

    Args:
        experiment: what is searched.
        groups: every group of the network.
        cost: its cost by widths.
        searched: names of the groups whose widths are searched.
        rankings: by `ranking_key`, for allocations that look at scores.
        blocks: the modules behind which auxiliary losses can sit.

    Raises:
        ExperimentError: a limit on MACs, or a budget, that is less than the narrowest widths cost; an allocation that
            looks at a ranking which is not known before the trial.
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
    ) -> None:
        self._experiment = experiment
        self._signature = groups.signature
        self._groups = groups.only(searched)
        self._cost = cost
        self._rankings = dict(rankings)
        self._blocks = len(blocks)
        self._least = {name: self._narrowest(name) for name in self._groups}
        limit = experiment.constraints.get("macs")
        self._most_macs = None if limit is None else int(limit.of(cost.full.macs))
        for allocation in experiment.search.allocation:
            if allocation.name == "searched":
                self._check_widths()
            else:
                self._check_allocation(allocation)

    @property
    def conditional(self) -> bool:
        """Whether some dimensions exist only for some values of others."""
        search = self._experiment.search
        losses = search.auxiliary
        several = len(losses.placement) > 1 or len(losses.head) > 1 or losses.weight_is_searched
        hang = 0 in losses.count and len(losses.count) > 1 and several
        hang |= "free" in losses.placement and (len(losses.count) > 1 or len(losses.placement) > 1)
        return len(search.allocation) > 1 or (hang and not losses.positions)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Policy:
        """Ask for every dimension of one trial and return the policy."""
        search = self._experiment.search
        criterion = self._criterion(trial)
        auxiliary = self._auxiliary(trial)
        allocations = {str(allocation): allocation for allocation in search.allocation}
        allocation = allocations[_choice(trial, "allocation", list(allocations))]
        recipe = self._recipe(trial)
        if allocation.name == "searched":
            widths = self._within_limit(self._widths(trial))
        else:
            widths = self._allocated(trial, allocation, criterion, auxiliary)
        return Policy(
            model=self._experiment.model,
            network=self._signature,
            widths=widths,
            criterion=criterion,
            auxiliary=auxiliary,
            recipe=recipe,
            seed=search.seed,
        )

    def only_policy(self) -> Policy:
        """Return the policy of a space with nothing to choose.

        Raises:
            ExperimentError: a dimension that is searched.
        """
        try:
            return self.suggest(_NothingToChoose({}))
        except _ChoiceError as error:
            raise ExperimentError(f"expected one policy, got a search over '{error}'; fix it in the file") from None

    def _criterion(self, trial: optuna.trial.BaseTrial) -> CriterionSpec:
        specs = self._experiment.search.criterion
        names = [spec.name for spec in specs]
        labels = {spec.name if names.count(spec.name) == 1 else ranking_key(spec): spec for spec in specs}
        return labels[_choice(trial, "criterion", list(labels))]

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

    def _widths(self, trial: optuna.trial.BaseTrial) -> dict[str, int]:
        if self._experiment.search.widths.per == "group":
            return {name: self._width(trial, name) for name in self._groups}
        stages = sorted({group.width for group in self._groups.values()})
        least = self._experiment.search.widths.minimum
        shares = {width: trial.suggest_float(f"width.stage{width}", least, 1.0) for width in stages}
        return {name: self._rounded(name, shares[group.width]) for name, group in self._groups.items()}

    def _width(self, trial: optuna.trial.BaseTrial, name: str) -> int:
        low, step = self._least[name], self._experiment.search.widths.round_to
        high = self._groups[name].width
        if high % step:
            high = max(low, high - high % step)
        return low if low == high else trial.suggest_int(f"width.{name}", low, high, step=step)

    def _rounded(self, name: str, share: float) -> int:
        """Return the allowed width nearest to a part of the full width."""
        width, step = self._groups[name].width, self._experiment.search.widths.round_to
        return width if share >= 1 else min(width, max(self._least[name], step * round(share * width / step)))

    def _narrowest(self, name: str) -> int:
        group, widths = self._groups[name], self._experiment.search.widths
        wish = max(group.minimum, math.ceil(Fraction(str(widths.minimum)) * group.width))
        return min(group.width, widths.round_to * math.ceil(wish / widths.round_to))

    def _within_limit(self, widths: dict[str, int]) -> dict[str, int]:
        if self._most_macs is None or self._cost.cost(widths).macs <= self._most_macs:
            return widths

        def direction(t: float) -> dict[str, float]:
            """From the narrowest widths through the proposed ones (t = ½) to the full ones."""
            narrow, proposed, full = self._least, widths, self._groups.widths
            if t <= 0.5:
                return {name: narrow[name] + 2 * t * (proposed[name] - narrow[name]) for name in widths}
            return {name: proposed[name] + (2 * t - 1) * (full[name] - proposed[name]) for name in widths}

        step = self._experiment.search.widths.round_to
        return project(self._groups, self._cost, direction, self._most_macs, round_to=step)

    def _allocated(
        self,
        trial: optuna.trial.BaseTrial,
        allocation: AllocationSpec,
        criterion: CriterionSpec,
        auxiliary: AuxiliaryPlacement | None,
    ) -> dict[str, int]:
        rule = self._rule(allocation)
        ranking = self._ranking(rule, criterion, auxiliary)
        if not rule.budgeted:
            return self._within_limit(rule.widths(self._groups, self._cost, None, ranking))
        span = self._experiment.search.budget
        share = span.minimum
        if span.minimum < span.maximum:
            share = trial.suggest_float("budget", span.minimum, span.maximum)
        return rule.widths(self._groups, self._cost, self._affordable(share), ranking)

    def _affordable(self, share: float) -> int:
        """Return a part of the baseline's MACs, at most what the limit allows."""
        macs = int(share * self._cost.full.macs)
        return macs if self._most_macs is None else min(macs, self._most_macs)

    def _rule(self, allocation: AllocationSpec) -> Allocation:
        step = {"round_to": self._experiment.search.widths.round_to}
        options = (step if "round_to" in ALLOCATIONS.options(allocation.name) else {}) | allocation.options
        return ALLOCATIONS.build(allocation.name, **options)

    # ── what no proposal could meet ──────────────────────────────────────────────────────────────────────────────────

    def _check_widths(self) -> None:
        least, full = self._cost.cost(self._least).macs, self._cost.full.macs
        if self._most_macs is not None and least > self._most_macs:
            needed = f"{least} MACs ({least / full:.1%}), which the narrowest widths cost"
            raise ExperimentError(f"constraints.macs: expected at least {needed}, got {self._most_macs}")

    def _check_allocation(self, allocation: AllocationSpec) -> None:
        rule = self._rule(allocation)
        macs = self._affordable(self._experiment.search.budget.minimum)
        for criterion in self._experiment.search.criterion:
            for auxiliary in self._experiment.search.auxiliary.known(self._blocks):
                try:
                    rule.widths(self._groups, self._cost, macs, self._ranking(rule, criterion, auxiliary))
                except PolicyError as error:
                    place = "constraints.macs" if macs == self._most_macs else "search.budget.minimum"
                    reason = str(error).removeprefix("budget: ")
                    raise ExperimentError(f"{place}: allocation '{allocation}': {reason}") from None
            self._check_without_ranking(rule, macs, criterion)

    def _check_without_ranking(self, rule: Allocation, macs: int, criterion: CriterionSpec) -> None:
        """Refuse a rule that needs a ranking where rankings are made only when a trial asks for them."""
        criterion, some = rule.ranked_by or criterion, AuxiliaryPlacement(positions=1)
        late = self._experiment.search.auxiliary.some_are_free and seen_placement(self._experiment, criterion, some)
        if not (late and rule.looks_at_ranking):
            return
        try:
            rule.widths(self._groups, self._cost, macs, None)
        except RankingError as error:
            seen = f"criterion '{criterion.name}' sees losses whose places or weights are free"
            raise ExperimentError(f"search.auxiliary: {seen}: no ranking before the trial; {error}") from None


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
