"""The trials of a study as records, each made anew only when its storage speaks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from optuna import Study
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from search.config import Objective
from search.pareto import front
from search.pool import Pool
from search.results import TrialRecord

NEWEST_OF, RUNNING_OF = 8, 2
"""The newest trials are an eighth of those that a sampler sees, those that run at most as many as half of them."""

Reader = Callable[[FrozenTrial, Mapping[str, Any]], TrialRecord | None]
"""Makes a record of a trial and the study's attributes; None of a trial that is none yet."""


class Store(Protocol):
    """What a driver asks of its study's storage besides what Optuna does."""

    def at_once(self) -> AbstractContextManager[None]:
        """Keep what is said until the outermost block ends, in one piece."""
        ...

    def take_changed(self) -> set[int]:
        """Return the numbers of the trials that have changed since the last call, at first all."""
        ...


class Ledger:
    """What a study holds, without asking it for all its trials at each event.

    The study stays the truth: a ledger that is made later says the same.

    Args:
        study: whose storage is a `Store`.
        objectives: of the sweep; they make the front.
        read: makes a record.

    Attributes:
        dimensions: those that all trials have, for samplers that want them: it goes on where it was the last time.
    """

    def __init__(self, study: Study, objectives: Sequence[Objective], read: Reader) -> None:
        self.study, self._read = study, read
        self._store = cast(Store, study._storage)
        self.dimensions = IntersectionSearchSpace()
        self._trials: list[FrozenTrial] = []
        self._records: dict[int, TrialRecord] = {}
        self._pool = Pool()
        self._open: set[int] = set()
        self._running: set[int] = set()
        self._shapes: dict[tuple[TrialState, frozenset[str]], int] = {}
        self._objectives = tuple(objectives)
        self._front: list[TrialRecord] = []

    def at_once(self) -> AbstractContextManager[None]:
        """Keep what is said to the study until the outermost block ends, in one piece."""
        return self._store.at_once()

    def __len__(self) -> int:
        """Return how many trials there are, whether they have a record or not."""
        return len(self.trials)

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """Every trial by number; not to be changed."""
        self._catch_up()
        return self._trials

    @property
    def unfinished(self) -> list[FrozenTrial]:
        """The trials that run or wait, by number."""
        self._catch_up()
        return [self._trials[number] for number in sorted(self._open)]

    @property
    def running(self) -> int:
        """How many trials with a record have not ended."""
        self._catch_up()
        return len(self._running)

    def record(self, number: int) -> TrialRecord:
        """Return the record of one trial.

        Raises:
            KeyError: the trial has none.
        """
        self._catch_up()
        return self._records[number]

    def records(self) -> list[TrialRecord]:
        """Return every record, in the order of proposal."""
        self._catch_up()
        return [self._records[number] for number in sorted(self._records)]

    def seen(self, most: int) -> list[FrozenTrial]:
        """Return the trials from which a sampler learns, by number.

        Up to `most` trials all are seen. Of more it sees the front, the newest, every second, fourth, … of the others,
        as many as before, from the whole history, and those that have not ended: of a thousand, which a cluster may
        run, the latest. It depends on nothing but which trials there are, so a resumed sweep goes on as it would have.
        """
        self._catch_up()
        count = len(self._trials)
        step = 1
        while most * step < count:
            step *= 2
        newest = range(max(0, count - most // NEWEST_OF), count)
        latest = sorted(self._open)[-most // RUNNING_OF :]
        numbers = {record.number for record in self._front}.union(latest, newest, range(0, count, step))
        return [self._trials[number] for number in sorted(numbers)]

    def shapes(self) -> list[FrozenTrial]:
        """Return the first trial that ended with each set of dimensions, by number."""
        self._catch_up()
        return [self._trials[number] for number in sorted(self._shapes.values())]

    def _catch_up(self) -> None:
        changed = self._store.take_changed()
        if not changed:
            return
        storage, study_id = self.study._storage, self.study._study_id
        explained = storage.get_study_user_attrs(study_id)
        for number in sorted(changed):
            trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))
            self._keep(trial, self._read(trial, explained))
        news = [record for number in changed if (record := self._records.get(number)) and record.counts]
        if news:  # whoever was dominated once stays so
            self._front = front([*self._front, *news], self._objectives)

    def _keep(self, trial: FrozenTrial, record: TrialRecord | None) -> None:
        ended = trial.state.is_finished()
        if ended:
            self._pool.trial(trial)
        self._trials[trial.number : trial.number + 1] = [trial]
        if record is not None:
            self._records[trial.number] = self._pool.record(record) if ended else record
        if not ended:
            self._open.add(trial.number)
            if record is not None:
                self._running.add(trial.number)
            return
        self._open.discard(trial.number)
        self._running.discard(trial.number)
        shape = trial.state, frozenset(trial.distributions)
        self._shapes[shape] = min(trial.number, self._shapes.get(shape, trial.number))
