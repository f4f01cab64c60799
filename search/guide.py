"""Who proposes when: the surrogate takes its share of the proposals, the sampler the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pruning import CostModel, LatencyModel, QuadraticRanking, Ranking, SensitivityRanking
from search.config import Experiment
from search.inputs import Inputs, ranking_key, seen_placement
from search.results import TrialRecord
from search.rules import prior_criterion
from search.space import Space
from search.study import Proposal
from search.surrogate import Ladder, Prior, Surrogate, observations_of

Integers = NDArray[np.int64]
Vector = NDArray[np.float64]

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

    def proposal(self, number: int, records: Callable[[], Sequence[TrialRecord]]) -> Proposal | None:
        """Return what the trial of this number is to try; see `search.study.Guide`."""
        share = self._search.surrogate.share
        turn = int((number + 1) * share)
        if turn == int(number * share):
            return None
        batch, place = divmod(turn - 1, BATCH)
        if self._batch[0] != batch:
            first = next(n for n in range(number + 1) if int((n + 1) * share) > batch * BATCH)
            self._batch = batch, self._proposals(batch, [record for record in records() if record.number < first])
        proposals = self._batch[1]
        return proposals[place] if place < len(proposals) else None

    def _proposals(self, batch: int, records: Sequence[TrialRecord]) -> list[Proposal]:
        self._surrogate.fit(observations_of(records))
        low, high = self._space.shares
        scale = self._space.budget.full / (1000 if self._space.budget.of == "latency_ms" else 1)  # from µs
        found = self._surrogate.propose(
            BATCH,
            low=low * scale,
            high=high * scale,
            budget=self._space.budget.of,
            candidates=self._search.surrogate.candidates,
            seed=self._search.seed + batch,
        )
        specs = {spec.name: spec for spec in reversed(self._search.criterion)}
        policies = [self._space.policy_of(dict(each.widths), specs[each.criterion]) for each in found]
        expected = self._surrogate.expect(found)
        predicted = [
            {"accuracy": round(mean, 5), "deviation": round(deviation, 5), "trained": expected.trained}
            for mean, deviation in zip(expected.mean.tolist(), expected.deviation.tolist(), strict=True)
        ]
        return [
            Proposal("surrogate", self._space.near(policy), policy.widths, guess)
            for policy, guess in zip(policies, predicted, strict=True)
        ]


def guide_of(inputs: Inputs, space: Space) -> SurrogateGuide | None:
    """Return who proposes beside the sampler of an experiment; nobody where it asks for none or searches no widths."""
    experiment = inputs.experiment
    spec = prior_criterion(experiment)
    if spec is None:
        return None
    placement = next(iter(experiment.search.auxiliary.known(len(inputs.blocks))), None)
    ranking = inputs.rankings[ranking_key(spec, seen_placement(experiment, spec, placement))]
    objectives = [name for name in experiment.objectives if name != "latency_ms" or inputs.latency is not None]
    surrogate = Surrogate(
        Ladder.of(space.groups, inputs.cost, space.least, round_to=experiment.search.widths.round_to),
        list(dict.fromkeys(criterion.name for criterion in experiment.search.criterion)),
        objectives if len(objectives) > 1 else ["accuracy", "macs"],
        inputs.baseline.to_dict(),
        _prior(ranking),
        {} if inputs.latency is None else {"latency_ms": _Milliseconds(inputs.latency, inputs.cost, space)},
    )
    return SurrogateGuide(experiment, space, surrogate)


def _prior(ranking: Ranking) -> Prior:
    if isinstance(ranking, SensitivityRanking):
        return Prior.of_curves(ranking)
    assert isinstance(ranking, QuadraticRanking)
    return Prior.of_quadratic(ranking)


class _Milliseconds:
    """Predicted latency of widths of the searched groups, `[policies, searched groups]`."""

    def __init__(self, model: LatencyModel, cost: CostModel, space: Space) -> None:
        self._model, self._full = model, cost.widths
        self._columns = [cost.groups.index(name) for name in space.groups]

    def __call__(self, widths: Integers) -> Vector:
        of_all = np.tile(self._full, (len(widths), 1))
        of_all[:, self._columns] = widths
        return self._model.microseconds(of_all) / 1000
