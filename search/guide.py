"""Who proposes when: the surrogate takes its share of the proposals, the sampler the others."""

from __future__ import annotations

from collections.abc import Sequence

from search.config import Experiment
from search.results import TrialRecord
from search.space import Space
from search.study import Proposal
from search.surrogate import Surrogate, observations_of

BATCH = 4
"""For how many of its proposals the surrogate is fitted once."""


class SurrogateGuide:
    """Takes a share of the proposals for the surrogate's front; light enough to travel with the searcher.

    A proposal depends on its number and on the trials before its batch alone: a sweep that is resumed goes on as one
    that was never interrupted, where one trial runs at a time.

    Args:
        experiment: whose share, candidates and seed they are.
        space: whose policies are proposed.
        surrogate: not yet fitted.
    """

    def __init__(self, experiment: Experiment, space: Space, surrogate: Surrogate) -> None:
        self._search, self._space, self._surrogate = experiment.search, space, surrogate
        self._batch: tuple[int, list[Proposal]] = (-1, [])

    def proposal(self, number: int, records: Sequence[TrialRecord]) -> Proposal | None:
        """Return what the trial of this number is to try; see `search.study.Guide`."""
        share = self._search.surrogate.share
        turn = int((number + 1) * share)
        if turn == int(number * share):
            return None
        batch, place = divmod(turn - 1, BATCH)
        if self._batch[0] != batch:
            first = next(n for n in range(number + 1) if int((n + 1) * share) > batch * BATCH)
            self._batch = batch, self._proposals(batch, [record for record in records if record.number < first])
        proposals = self._batch[1]
        return proposals[place] if place < len(proposals) else None

    def _proposals(self, batch: int, records: Sequence[TrialRecord]) -> list[Proposal]:
        self._surrogate.fit(observations_of(records))
        low, high = self._space.shares
        found = self._surrogate.propose(
            BATCH,
            low=low * self._space.budget.full,
            high=high * self._space.budget.full,
            candidates=self._search.surrogate.candidates,
            seed=self._search.seed + batch,
        )
        specs = {spec.name: spec for spec in reversed(self._search.criterion)}
        policies = [self._space.policy_of(each.widths, specs[each.criterion]) for each in found]
        return [Proposal("surrogate", self._space.near(policy), policy.widths) for policy in policies]


def guide_of(inputs: Inputs, space: Space) -> SurrogateGuide | None:
    """Return who proposes beside the sampler of an experiment; nobody where it asks for none or searches no widths."""
    spec = prior_criterion(inputs.experiment)
    if spec is None:
        return None
    placement = next(iter(inputs.experiment.search.auxiliary.known(len(inputs.blocks))), None)
    ranking = inputs.rankings[ranking_key(spec, seen_placement(inputs.experiment, spec, placement))]
    raise NotImplementedError(ranking)
