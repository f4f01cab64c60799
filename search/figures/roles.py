"""Which part each trial plays in a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from search.config import Objective
from search.errors import SweepError
from search.pareto import Limits, comparable, front, pick, value_of
from search.results import State, TrialRecord
from search.sections import Limit

HALF = Limit(value=0.5, relative=True)


def dominated(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials that could be on the front and are not."""
    members = {record.number for record in front(records, objectives)}
    return [record for record in comparable(records, objectives) if record.number not in members]


def infeasible(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the finished trials that broke a constraint."""
    return [
        record
        for record in records
        if record.state is State.FINISHED
        and not record.feasible
        and all(value_of(record, name) is not None for name in ("accuracy", *objectives))
    ]


def best_at_half(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], cost: Objective, baseline: Mapping[str, Any]
) -> TrialRecord | None:
    """Return the most accurate trial that needs at most half of the baseline's cost, if there is one."""
    try:
        return pick(records, objectives, Limits(**{f"max_{cost}": HALF}), baseline).record
    except SweepError:
        return None


def caption(records: Sequence[TrialRecord], objectives: Sequence[Objective], hidden: int = 0) -> str:
    """Say how many trials there are and how they ended."""
    states = Counter(record.state for record in records)
    broken = sum(record.state is State.FINISHED and not record.feasible for record in records)
    parts = [f"{states[State.FINISHED]} finished"]
    parts += [f"{broken} of them broke a constraint"] if broken else []
    parts += [
        f"{states[state]} {state.value}" for state in (State.STOPPED, State.FAILED, State.RUNNING) if states[state]
    ]
    parts += [f"{hidden} below the axis"] if hidden else []
    trials = "1 trial" if len(records) == 1 else f"{len(records)} trials"
    return f"{trials}: {', '.join(parts)}; front of {len(front(records, objectives))}"


def accuracy_axis(shown: Sequence[TrialRecord], members: Sequence[TrialRecord], baseline: float) -> tuple[float, float]:
    """Return the ends of an accuracy axis, in percent, around the front and the baseline, with room above.

    A trial that learned nothing must not squeeze the front into a line: it may fall below the axis.
    """
    anchors = [100 * baseline, *(100 * (value_of(record, "accuracy") or 0.0) for record in members)]
    values = [100 * (value_of(record, "accuracy") or 0.0) for record in shown] + anchors
    span = max(max(anchors) - min(anchors), 1.0)
    lowest = min(value for value in values if value >= min(anchors) - span / 2)
    return lowest - 0.08 * span, max(values) + 0.3 * span
