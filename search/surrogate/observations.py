"""What a surrogate learns from: the measurements of a sweep's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from search.results import Metrics, State, TrialRecord


@dataclass(frozen=True)
class Observation:
    """A policy and what is known of its accuracy, 0 to 1.

    Attributes:
        widths: by group; one that is not named is uncut.
        criterion: the label of what chose the channels.
        first: after the cut, nothing trained; None if it was not measured.
        last: after the last epoch of the recipe; None if it was not reached, or there are none.
        counts: whether it may stand on the front.
    """

    widths: Mapping[str, int]
    criterion: str
    first: float | None = None
    last: float | None = None
    counts: bool = True


def observations_of(records: Sequence[TrialRecord]) -> list[Observation]:
    """Return what was measured of each trial, those that run or were stopped early included; failed ones are left out.

    The criterion's label is the searched value, if the criterion is searched, else its name.
    """
    found = []
    for record in records:
        if record.state is State.FAILED or not record.history:
            continue
        first, last = record.history[0], record.history[-1]
        epochs = record.policy.recipe.epochs
        found.append(
            Observation(
                widths=dict(record.policy.widths),
                criterion=str(record.params.get("criterion", record.policy.criterion.name)),
                first=_accuracy(first) if first.epoch == 0 else None,
                last=_accuracy(last) if last.epoch >= epochs > 0 else None,
                counts=record.counts,
            )
        )
    return found


def _accuracy(metrics: Metrics) -> float | None:
    return metrics.accuracy if isfinite(metrics.accuracy) else None
