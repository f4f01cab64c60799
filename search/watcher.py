"""What happens in Tune, told on: to MLflow's outbox and to the live view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from search.progress import LiveView
from search.results import TrialRecord
from search.searcher import StudySearcher
from search.tracking import Tracker


class Watcher(tune.Callback):
    """Tells the tracker and the live view what happens; runs in the driver.

    Args:
        searcher: has the records.
        tracker: is told.
        view: is told.
        forget: removes what a trial of this number has left to go on from.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        tracker: Tracker,
        view: LiveView,
        forget: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._searcher, self._tracker, self._view, self._forget = searcher, tracker, view, forget
        self._shown = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was launched, or launched again."""
        record = self._record(trial)
        self._tracker.trial_started(record)
        self._show(record)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial measured something."""
        history = self._record(trial).history
        if history:
            self._tracker.trial_reported(trial.config["number"], history[-1])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended by itself, or was stopped early."""
        record = self._record(trial)
        self._tracker.trial_ended(record)
        self._forget(record.number)
        self._show(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's workers died more often than is allowed."""
        told = Path(trial.error_file) if trial.error_file else None
        reason = told.read_text() if told and told.exists() else "its worker died"
        self._searcher.explain_failure(trial.trial_id, reason)
        self.on_trial_complete(iteration, trials, trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's worker died, and another one is to go on."""
        self._view.note(f"trial {trial.config['number']}: its worker was lost; another one goes on with it")

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _record(self, trial: Any) -> TrialRecord:
        return self._searcher.record(trial.config["number"])

    def _show(self, record: TrialRecord) -> None:
        """Show one trial's news; the first time all that an earlier run has left."""
        self._view.update([record] if self._shown else self._searcher.records(), self._searcher.running)
        self._shown = True
