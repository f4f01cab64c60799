"""The searched dimensions: what Optuna is asked for, and the policy that the answers mean, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from pruning import ChannelGroups, CostModel, CriterionSpec, LatencyModel, Policy, Ranking
from search.budgets import Budget
from search.config import Experiment
from search.dimensions import AuxiliaryDimensions, CriterionDimensions, ask_recipe, choice
from search.errors import ExperimentError
from search.sections import AllocationSpec
from search.widths import WidthDimensions


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
        self._experiment, self._all = experiment, groups
        self._groups = groups.only(searched)
        self._criteria = CriterionDimensions(experiment.search, self._groups)
        self._auxiliary = AuxiliaryDimensions(experiment.search.auxiliary, len(blocks))
        self._widths = WidthDimensions(experiment, self._groups, cost, rankings, len(blocks), latency)

    @property
    def conditional(self) -> bool:
        """Whether some dimensions exist only for some values of others."""
        rules = len(self._experiment.search.allocation) > 1
        return rules or self._criteria.conditional or self._auxiliary.conditional

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
        return dict(self._widths.least)

    @property
    def budget(self) -> Budget:
        """The cost that proposals meet."""
        return self._widths.budget

    @property
    def shares(self) -> tuple[float, float]:
        """The ends of the budget, as parts of the baseline's cost, as far as widths and limits allow."""
        return self._widths.low, self._widths.high

    def suggest(self, trial: optuna.trial.BaseTrial, widths: Mapping[str, int] | None = None) -> Policy:
        """Ask for every dimension of one trial and return the policy.

        Args:
            trial: who answers.
            widths: the policy's, whatever widths the answers mean: of a policy that the space can only come near to.
        """
        asked = self._experiment
        criteria = self._criteria.ask(trial)
        auxiliary = self._auxiliary.ask(trial)
        allocations = {str(allocation): allocation for allocation in asked.search.allocation}
        allocation = allocations[choice(trial, "allocation", list(allocations))]
        recipe = ask_recipe(trial, asked.recipe, asked.search.recipe)
        meant = self._widths.ask(trial, allocation, criteria, auxiliary)
        return Policy(
            model=asked.model,
            network=self._all.signature,
            thinned=self._all.thinned,
            widths=meant if widths is None else dict(widths),
            criterion=next(iter(criteria.values())),
            criteria=criteria,
            auxiliary=auxiliary,
            recipe=recipe,
            seed=asked.search.seed,
        )

    def near(self, policy: Policy) -> dict[str, Any]:
        """Return answers that give a policy, or one near to it; a dimension that cannot take its value is left out.

        Searched widths for each group come back exactly, where budget and bounds allow them; those for each stage or by
        scores are the nearest.
        """
        criteria = {name: policy.criterion_of(name) for name in self._groups}
        widths = self._widths.answers(self.searched_widths(policy), criteria, policy.auxiliary)
        return self._criteria.answers(policy) | widths

    def searched_widths(self, policy: Policy) -> dict[str, int]:
        """Return a policy's widths of the searched groups; others stay whole."""
        return self._groups.widths | {name: width for name, width in policy.widths.items() if name in self._groups}

    def policy_of(self, widths: Mapping[str, int], criterion: CriterionSpec) -> Policy:
        """Return a policy with these widths and this criterion, and nothing else."""
        return Policy(
            model=self._experiment.model,
            network=self._all.signature,
            thinned=self._all.thinned,
            widths=dict(widths),
            criterion=criterion,
        )

    def rule_widths(self, allocation: AllocationSpec, share: float, criterion: CriterionSpec) -> dict[str, int]:
        """Return what a rule makes of a budget, given as part of the baseline's cost.

        Raises:
            PolicyError: a budget that it cannot meet.
            RankingError: a ranking that it needs and that is not known before the trials.
        """
        return self._widths.by_rule(allocation, share, criterion)

    def only_policy(self) -> Policy:
        """Return the policy of a space with nothing to choose.

        Raises:
            ExperimentError: a dimension that is searched.
        """
        try:
            return self.suggest(_NothingToChoose({}))
        except _ChoiceError as error:
            raise ExperimentError(f"expected one policy, got a search over '{error}'; fix it in the file") from None


class _ChoiceError(Exception):
    """A dimension that has more than one value."""


class _NothingToChoose(optuna.trial.FixedTrial):
    """A trial that has no answers."""

    def _suggest(self, name: str, distribution: optuna.distributions.BaseDistribution) -> Any:  # noqa: ARG002
        raise _ChoiceError(name)
