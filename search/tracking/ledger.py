"""What the lines of an outbox say when read from the first on: the sweep, its trials, their measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pruning import Policy
from search.results import Metrics, State, TrialRecord
from search.tracking.outbox import Line


def record_to_json(record: TrialRecord) -> dict[str, Any]:
    """Return a trial as plain data."""
    return {
        "number": record.number,
        "state": record.state.value,
        "params": record.params,
        "policy": record.policy.model_dump(mode="json"),
        "history": [asdict(metrics) for metrics in record.history],
        "feasible": record.feasible,
        "error": record.error,
        "started": record.started,
        "seconds": record.seconds,
    }


def record_from_json(data: Mapping[str, Any]) -> TrialRecord:
    """Return the trial that `record_to_json` wrote."""
    return TrialRecord(
        number=data["number"],
        state=State(data["state"]),
        params=data["params"],
        policy=Policy.model_validate(data["policy"]),
        history=tuple(Metrics(**metrics) for metrics in data["history"]),
        feasible=data["feasible"],
        error=data["error"],
        started=data["started"],
        seconds=data["seconds"],
    )


@dataclass
class Ledger:
    """The sum of the lines so far.

    Attributes:
        sweep: the line with which the sweep began, or last went on.
        records: every trial as it was last told of.
        measured: for each trial the measurement of each epoch.
        interrupted: trials that were running when the driver ended.
    """

    sweep: Line | None = None
    records: dict[int, TrialRecord] = field(default_factory=dict)
    measured: dict[int, dict[int, Metrics]] = field(default_factory=dict)
    interrupted: set[int] = field(default_factory=set)

    def add(self, line: Line) -> None:
        """Take a line into account; it may come twice."""
        match line["kind"]:
            case "start":
                self.sweep = line
            case "trial_started" | "trial_ended":
                record = record_from_json(line["record"])
                self.records[record.number] = record
                self.interrupted.discard(record.number)
                self._measure(record.number, record.history)
            case "trial_reported" if line["number"] in self.records:
                self.interrupted.discard(line["number"])
                self._measure(line["number"], (Metrics(**line["metrics"]),))
            case "closed":
                self.interrupted |= self.running

    def _measure(self, number: int, history: tuple[Metrics, ...]) -> None:
        self.measured.setdefault(number, {}).update({metrics.epoch: metrics for metrics in history})

    def is_new(self, number: int, metrics: Metrics) -> bool:
        """Whether a measurement says more than what is known; the clock alone does not count."""
        known = self.measured.get(number, {}).get(metrics.epoch)
        return known is None or repr(replace(known, seconds=metrics.seconds)) != repr(metrics)  # NaN is no news either

    @property
    def running(self) -> set[int]:
        """Trials that have not ended."""
        return {number for number, record in self.records.items() if record.state is State.RUNNING}

    def ended_with(self, record: TrialRecord) -> list[TrialRecord]:
        """Return the trials that have ended once `record` has, by number."""
        records = {**self.records, record.number: record}
        return [record for _, record in sorted(records.items()) if record.state is not State.RUNNING]
