"""How long a sweep has run, and may: kept in its study, so that it counts across interruptions."""

from __future__ import annotations

import time

import optuna

_SECONDS = "running_seconds"


def running_seconds(study: optuna.Study) -> float:
    """Return how long a sweep with a time budget had run at its last event."""
    return float(study.user_attrs.get(_SECONDS, 0.0))


class RunningTime:
    """The time that a sweep has, in all its runs together.

    Args:
        budget: seconds; None counts nothing.
    """

    def __init__(self, budget: float | None) -> None:
        self._budget = budget
        self._before, self._began = 0.0, time.monotonic()

    def begin(self, study: optuna.Study) -> None:
        """Count from now on, and on top of what the study says of earlier runs."""
        if self._budget is not None:
            self._before, self._began = running_seconds(study), time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds, at least 0; None without a budget."""
        return None if self._budget is None else max(0.0, self._budget - self._so_far)

    def keep(self, study: optuna.Study) -> None:
        """Write down the time so far; what passes before the next time is lost in a crash."""
        if self._budget is not None:
            study.set_user_attr(_SECONDS, self._so_far)

    @property
    def _so_far(self) -> float:
        return self._before + time.monotonic() - self._began
