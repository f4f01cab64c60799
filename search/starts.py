"""What a sweep tries first: widths by the papers' rules at several budgets, and policies that are at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from pruning import Policy, PruningError, load_policy
from search.config import EXPERIMENT, Experiment, load_experiment
from search.errors import ExperimentError, SearchError
from search.inputs import Say, silent
from search.pareto import front
from search.rules import ADAPTIVE, check_start, start_rules
from search.space import Space
from search.study import Proposal, load_records

PLACES = (1 / 2, 1 / 6, 5 / 6, 1 / 3, 2 / 3, 0.0, 1.0)
"""Where in the range of budgets rules are tried, the first ones first."""

GIVEN, BY_RULES = 2, 4
"""Of the trials, one in so many starts from a given policy, and one in so many from a rule's widths, at most."""


def make_starts(experiment: Experiment, space: Space, say: Say = silent) -> list[Proposal]:
    """Return what to try first: given policies, at most half of the trials, then rules, at most a quarter.

    The rules go round: from budget to budget another one, until each has had every budget. A rule of `papers` that has
    nothing to say of this network is left out with a note; one that is named is not.

    Raises:
        ExperimentError: a name that is neither rule nor file, a rule that is named and fails, or a policy for another
            network.
    """
    trials = experiment.search.trials
    given = list(islice(_different(_given(experiment, space)), max(1, trials // GIVEN)))
    all_of_them = _different(chain(given, _by_rules(experiment, space, say)))
    return list(islice(all_of_them, len(given) + max(1, trials // BY_RULES)))


def _different(starts: Iterable[Proposal]) -> Iterator[Proposal]:
    seen = set[tuple[object, ...]]()
    for start in starts:
        key = (tuple(sorted(start.widths.items())), str(start.answers))
        if key not in seen:
            seen.add(key)
            yield start


def _by_rules(experiment: Experiment, space: Space, say: Say) -> Iterator[Proposal]:
    low, high = space.shares
    rules, criteria = start_rules(experiment), experiment.search.criterion
    refused = set[str]()
    turns = [(place, (place + turn) % len(rules)) for turn in range(len(rules)) for place in range(len(PLACES))]
    for number, (place, turn) in enumerate(turns):
        rule, share = rules[turn], low + PLACES[place] * (high - low)
        greedy = [spec for spec in criteria if spec.name == "dcp" and rule == ADAPTIVE]
        criterion = (greedy or criteria)[number % len(greedy or criteria)]
        if str(rule) in refused:
            continue
        try:
            widths = space.rule_widths(rule, share, criterion)
        except PruningError as error:
            refused.add(str(rule))
            if rule.name in experiment.search.start:
                raise ExperimentError(f"search.start: {rule}: {error}") from None
            say(f"note: no start by {rule}: {error}")
            continue
        source = f"{rule.name} at {share:.0%}"
        yield Proposal(source, space.near(space.policy_of(widths, criterion)), widths)


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
