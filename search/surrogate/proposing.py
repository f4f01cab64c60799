"""A cheap model of what policies reach, which says what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from search.config import Objective
from search.errors import SearchError
from search.surrogate.choice import choose
from search.surrogate.evolution import Candidates, Points, evolve, hashes
from search.surrogate.goals import Estimate, Goals
from search.surrogate.ladder import Integers, Ladder, Vector
from search.surrogate.observations import Observation
from search.surrogate.prior import Prior
from search.surrogate.quality import Policies, Quality
from search.surrogate.start import directions, least_harm

OPTIMISM = 0.5
"""So many deviations above the mean count as reached when proposals are chosen."""
DIRECTIONS = 1000
"""So many random directions are among the candidates, and at so many budgets the prior is asked:"""
BUDGETS = 64


@dataclass(frozen=True)
class Prediction:
    """Accuracy, 0 to 1, `[policies]`.

    Attributes:
        mean: what is expected.
        deviation: how far the truth may be from it.
        trained: whether it is that after fine-tuning; else that after the cut.
    """

    mean: Vector
    deviation: Vector
    trained: bool


@dataclass(frozen=True)
class Proposal:
    """A policy to try: channels kept of each searched group, and the label of what chooses the channels."""

    widths: Mapping[str, int]
    criterion: str


class Surrogate:
    """Predicts accuracy from what trials measured, and proposes policies on the front that it predicts.

    Accuracy is that after fine-tuning as soon as one trial got there, until then that after the cut. Costs are exact.

    Args:
        ladder: the searched groups with the widths they may have.
        criteria: labels of what may choose the channels.
        objectives: accuracy, and one or two costs.
        baseline: what the uncut network measures, by name.
        prior: what is known before any trial.
        estimates: what tells a cost that is neither MACs nor parameters, e.g. a model of the latency.

    Raises:
        SearchError: objectives without accuracy, or a cost that nothing tells; a prior of other groups.
    """

    def __init__(
        self,
        ladder: Ladder,
        criteria: Sequence[str],
        objectives: Sequence[Objective],
        baseline: Mapping[str, float],
        prior: Prior | None = None,
        estimates: Mapping[Objective, Estimate] | None = None,
    ) -> None:
        self._ladder, self._prior = ladder, prior
        self._labels = {criterion: label for label, criterion in enumerate(criteria)}
        self._goals = Goals(ladder, objectives, baseline, estimates or {})
        self._quality = Quality(ladder, prior, len(self._labels), baseline["accuracy"])
        self._observations: list[Observation] = []

    def fit(self, observations: Sequence[Observation]) -> None:
        """Learn from all trials so far, in their order; those of a criterion that is not listed are left out."""
        self._observations = [known for known in observations if known.criterion in self._labels]
        cut = [(known, known.first) for known in self._observations if known.first is not None]
        trained = [(known, known.last) for known in self._observations if known.last is not None]
        self._quality.fit(
            self._policies([known for known, _ in cut]),
            np.array([accuracy for _, accuracy in cut]),
            self._policies([known for known, _ in trained]),
            np.array([accuracy for _, accuracy in trained]),
        )

    def predict(self, widths: Integers, criterion: str) -> Prediction:
        """Predict policies with one criterion.

        Args:
            widths: of the ladder's groups, `[policies, groups]`.
            criterion: one of the labels.

        Raises:
            SearchError: another criterion.
        """
        if criterion not in self._labels:
            raise SearchError(f"criterion: expected one of {', '.join(self._labels)}, got '{criterion}'")
        return self._predicted(Policies(widths, np.full(len(widths), self._labels[criterion])))

    def expect(self, proposals: Sequence[Proposal]) -> Prediction:
        """Predict proposals, each with its own criterion."""
        return self._predicted(self._policies(proposals))

    def _predicted(self, policies: Policies) -> Prediction:
        mean: Vector = expit(self._quality.mean(policies))
        return Prediction(mean, mean * (1 - mean) * self._quality.deviation(policies), self._quality.trained)

    def propose(
        self,
        count: int,
        *,
        low: float,
        high: float,
        budget: Objective = "macs",
        candidates: int = 100_000,
        seed: int = 0,
        pending: Sequence[Proposal] = (),
    ) -> list[Proposal]:
        """Propose policies that were not tried, each with the largest gain in hypervolume besides those before.

        The gain is what an optimist expects, over what is expected of those that were tried. Equal arguments, after
        equal observations, give equal proposals.

        Args:
            count: how many; less are returned where no more are found.
            low: no proposal costs less.
            high: no proposal costs more.
            budget: which cost has these bounds.
            candidates: so many are looked at, up to half of them from trials.
            seed: draws them.
            pending: policies that are being tried.

        Raises:
            SearchError: a budget of a cost that nothing tells.
        """
        running = [proposal for proposal in pending if proposal.criterion in self._labels]
        tried = self._policies([*self._observations, *running])
        rng = np.random.default_rng(seed)
        bred = self._bred(tried, low, high, budget, candidates, rng)
        policies = self._of(bred)
        hoped = self._quality.mean(policies) + OPTIMISM * self._quality.deviation(policies)
        points = self._goals.points(self._goals.costs(policies.widths), expit(hoped))
        hopes = Candidates(bred.states, bred.labels, points)
        reached = [known for known in self._observations if known.counts]
        chosen = _chosen(hopes, self._expected(self._policies([*reached, *running])), count)
        names = list(self._labels)
        return [
            Proposal(dict(zip(self._ladder.names, widths, strict=True)), names[label])
            for widths, label in zip(self._ladder.widths(chosen.states).tolist(), chosen.labels.tolist(), strict=True)
        ]

    def _bred(
        self, tried: Policies, low: float, high: float, budget: Objective, count: int, rng: np.random.Generator
    ) -> Candidates:
        """Return candidates within a budget that were not tried, bred towards the front that is expected."""
        ladder, tried_states = self._ladder, self._ladder.nearest(tried.widths)
        exact = (ladder.widths(tried_states) == tried.widths).all(axis=1)
        known = hashes(tried_states[exact], tried.labels[exact])

        def cost(widths: Integers) -> Vector:
            return self._goals.cost(budget, widths)

        def score(states: Integers, labels: Integers) -> Candidates:
            widths = ladder.widths(states)
            costs = self._goals.costs(widths)
            allowed = (low <= costs[budget]) & (costs[budget] <= high) & ~np.isin(hashes(states, labels), known)
            policies = Policies(widths[allowed], labels[allowed])
            of_allowed = {name: of_all[allowed] for name, of_all in costs.items()}
            points = self._goals.points(of_allowed, expit(self._quality.mean(policies)))
            return Candidates(states[allowed], policies.labels, points)

        budgets = rng.uniform(low, high, size=DIRECTIONS)
        states = [tried_states, directions(ladder, cost, budgets, rng)]
        if self._prior is not None:
            states.append(least_harm(ladder, cost, self._prior, np.linspace(low, high, BUDGETS)))
        first = np.vstack(states)
        start = score(first, rng.integers(len(self._labels), size=len(first)))
        old = max(0, len(tried_states) - count // 2)  # so many trials too many: they must not leave room for none
        return evolve(score, ladder, len(self._labels), start, max(count + old - len(first), 0), rng)

    def _expected(self, policies: Policies) -> Points:
        return self._goals.points(self._goals.costs(policies.widths), expit(self._quality.mean(policies)))

    def _of(self, candidates: Candidates) -> Policies:
        return Policies(self._ladder.widths(candidates.states), candidates.labels)

    def _policies(self, known: Sequence[Observation | Proposal]) -> Policies:
        labels = np.array([self._labels[one.criterion] for one in known], dtype=np.int64)
        return Policies(self._ladder.matrix([one.widths for one in known]), labels)


def _chosen(candidates: Candidates, reached: Points, count: int) -> Candidates:
    """Choose by gain over what was reached; if too few gain anything, others by gain over nothing."""
    front = candidates.front()
    best = front.of(choose(front.points, reached, count))
    while len(best) < count:
        layer = candidates.without(best).front()
        more = choose(layer.points, reached[:0], count - len(best))
        if not more:
            break
        best = best.and_others(layer.of(more))
    return best
