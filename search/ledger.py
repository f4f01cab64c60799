"""The trials of a study as records, each made anew only when the journal speaks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from search.config import Objective
from search.journal import Journal
from search.pareto import front
from search.results import TrialRecord

Reader = Callable[[FrozenTrial, Mapping[str, Any]], TrialRecord | None]
"""Makes a record of a trial and the study's attributes; None of a trial that is none yet."""


class Ledger:
    """What a study holds, without asking it for all its trials at each event.

    The study stays the truth: a ledger that is made later says the same.

    Args:
        study: whose storage reads the journal.
        journal: knows which trials have changed.
        objectives: of the sweep; they make the front.
        read: makes a record.
    """

    def __init__(self, study: Study, journal: Journal, objectives: Sequence[Objective], read: Reader) -> None:
        self.study, self.journal, self._read = study, journal, read
        self._trials: list[FrozenTrial] = []
        self._records: dict[int, TrialRecord] = {}
        self._open: set[int] = set()
        self._objectives = tuple(objectives)
        self._front: list[TrialRecord] = []

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

    def seen(self, newest: int) -> list[FrozenTrial]:
        """Return the trials of the front, the newest that ended and those that have not, by number."""
        self._catch_up()
        numbers = {record.number for record in self._front} | self._open
        number = len(self._trials)
        while number and newest:
            number -= 1
            newest -= number not in self._open
            numbers.add(number)
        return [self._trials[number] for number in sorted(numbers)]

    def _catch_up(self) -> None:
        changed = self.journal.take_changed()
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
        self._trials[trial.number : trial.number + 1] = [trial]
        if record is not None:
            self._records[trial.number] = record
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            self._open.add(trial.number)
        else:
            self._open.discard(trial.number)
