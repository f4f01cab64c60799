"""What a sweep tries first: widths by the papers' rules at several budgets, and policies that are at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning import CriterionSpec, Policy, PruningError, load_policy
from search.config import EXPERIMENT, Experiment, load_experiment
from search.errors import ExperimentError, SearchError
from search.inputs import Say, silent
from search.pareto import front
from search.rules import ADAPTIVE, check_start, start_rules
from search.sections import AllocationSpec
from search.space import Space
from search.study import Proposal, load_records

PLACES = (1 / 2, 1 / 6, 5 / 6, 1 / 3, 2 / 3, 0.0, 1.0)
"""Where in the range of budgets rules are tried, the first ones first."""


def make_starts(experiment: Experiment, space: Space, say: Say = silent) -> list[Proposal]:
    """Return what to try first, at most half of the trials: given policies, then rules from budget to budget.

    A rule of `papers` that has nothing to say of this network is left out with a note; one that is named is not.

    Raises:
        ExperimentError: a name that is neither rule nor file, a rule that is named and fails, or a policy for another
            network.
    """
    found: dict[tuple[object, ...], Proposal] = {}
    for start in (*_given(experiment, space), *_by_rules(experiment, space, say)):
        found.setdefault((tuple(sorted(start.widths.items())), str(start.answers)), start)
    return list(found.values())[: max(1, experiment.search.trials // 2)]


def _by_rules(experiment: Experiment, space: Space, say: Say) -> Iterator[Proposal]:
    low, high = space.shares
    rules, refused = start_rules(experiment), set[str]()
    for place, part in enumerate(PLACES):
        share = low + part * (high - low)
        for number, rule in enumerate(rules):
            if str(rule) in refused:
                continue
            criterion = _criterion(experiment, rule, place + number)
            try:
                widths = space.rule_widths(rule, share, criterion)
            except PruningError as error:
                refused.add(str(rule))
                if rule.name in experiment.search.start:
                    raise ExperimentError(f"search.start: {rule}: {error}") from None
                say(f"note: no start by {rule}: {error}")
                continue
            yield _start(f"{rule.name} at {share:.0%}", space, widths, criterion)


def _criterion(experiment: Experiment, rule: AllocationSpec, number: int) -> CriterionSpec:
    """Return the criterion of a start: one after the other, so that each is seen at several budgets."""
    listed = experiment.search.criterion
    greedy = [spec for spec in listed if spec.name == "dcp"]
    return greedy[0] if rule == ADAPTIVE and greedy else listed[number % len(listed)]


def _given(experiment: Experiment, space: Space) -> Iterator[Proposal]:
    check_start(experiment)
    for path in experiment.search.start_paths:
        for name, policy in _policies(path):
            try:
                policy.check(space.all_groups)
            except PruningError as error:
                raise ExperimentError(f"search.start: {name}: {error}") from None
            yield Proposal(f"policy of {name}", space.near(policy), space.searched_widths(policy))


def _policies(path: Path) -> Sequence[tuple[str, Policy]]:
    if path.is_dir() and not (path / EXPERIMENT).is_file():
        raise ExperimentError(f"search.start: expected a policy's file or a sweep's folder, got folder '{path}'")
    try:
        if path.is_file():
            return [(path.name, load_policy(path))]
        experiment = load_experiment(path)
        members = front(load_records(path, experiment), experiment.objectives)
    except (PruningError, SearchError) as error:
        raise ExperimentError(f"search.start: {error}") from None
    return [(f"{path.name}, trial {record.number}", record.policy) for record in members]


def _start(source: str, space: Space, widths: dict[str, int], criterion: CriterionSpec) -> Proposal:
    return Proposal(source, space.near(space.policy_of(widths, criterion)), widths)
