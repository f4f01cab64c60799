"""How a sweep stands, told trial by trial: the cost of one more does not grow with the number of trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from search.config import Objective
from search.pareto import front, hypervolume
from search.results import State, TrialRecord

FAILURES = 3


@dataclass(frozen=True)
class Standing:
    """The trials that ended: how many and how, their front and what it dominates.

    Attributes:
        objectives: of the sweep; they make the front.
        baseline: the uncut network's metrics by name.
        ended: trials by how they ended.
        beyond: those that finished beyond the limits.
        front: cheapest first.
        failures: the last ones that failed.
    """

    objectives: Sequence[Objective]
    baseline: Mapping[str, Any]
    ended: Counter[State] = field(default_factory=Counter)
    beyond: int = 0
    front: tuple[TrialRecord, ...] = ()
    failures: tuple[TrialRecord, ...] = ()

    def plus(self, records: Iterable[TrialRecord]) -> Standing:
        """Return how the sweep stands with more trials; each is to come once, those that still run do not count."""
        news = [record for record in records if record.state is not State.RUNNING]
        counting = [record for record in news if record.counts]
        failed = [record for record in news if record.state is State.FAILED]
        return replace(
            self,
            ended=self.ended + Counter(record.state for record in news),
            beyond=self.beyond + sum(record.state is State.FINISHED and not record.feasible for record in news),
            # Whoever was dominated once stays so: nobody else but the old front and the new trials can be on it.
            front=tuple(front([*self.front, *counting], self.objectives)) if counting else self.front,
            failures=(*self.failures, *failed)[-FAILURES:],
        )

    @cached_property
    def hypervolume(self) -> float:
        """The part of all trade-offs that the front dominates, 0 to 1.

        Raises:
            SweepError: the baseline lacks an objective.
        """
        return hypervolume(self.front, self.objectives, self.baseline)
