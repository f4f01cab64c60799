"""What the lines of an outbox say when read from the first on: the sweep, its trials, their measurements."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from pruning import Policy, explain
from search.errors import SweepError
from search.pareto import Limits, pick
from search.pool import Pool
from search.reading import well_formed
from search.results import Metrics, State, TrialRecord
from search.sections import Limit
from search.standing import Standing
from search.tracking.outbox import OUTBOX, Line


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
        "ended": record.ended,
        "extra": record.extra,
    }


def record_from_json(data: Mapping[str, Any]) -> TrialRecord:
    """Return the trial that `record_to_json` wrote.

    Raises:
        PolicyError, ValueError, LookupError, TypeError: other data.
    """
    if not isinstance(data["number"], int) or not isinstance(data["params"], dict) or data["number"] < 0:
        raise ValueError(f"expected a trial's number and what it decided, got {data['number']!r}")
    times = [data[name] for name in ("started", "seconds", "ended") if data.get(name) is not None]
    if not all(isinstance(time, (int, float)) and abs(time) < 2**53 for time in times):
        raise ValueError(f"expected times in seconds, got {times}")
    return TrialRecord(
        number=data["number"],
        state=State(data["state"]),
        params={sys.intern(name): value for name, value in data["params"].items()},
        policy=_policy(data["policy"]),
        history=tuple(Metrics.of(metrics) for metrics in data["history"]),
        feasible=data["feasible"],
        error=data["error"],
        started=data["started"],
        seconds=data["seconds"],
        ended=data.get("ended"),
        extra=data.get("extra", {}),
    )


def _policy(tree: Any) -> Policy:
    try:
        return Policy.model_validate(tree)
    except ValidationError as error:
        raise SweepError(explain(error, "policy", Policy)) from None


HALF = Limits(max_macs=Limit(value=0.5, relative=True))


@dataclass(frozen=True)
class Progress:
    """How the sweep stands.

    Attributes:
        standing: of the trials that ended.
        best: the most accurate of them with at most half the MACs; None if there is none.
    """

    standing: Standing
    best: TrialRecord | None = None

    def plus(self, records: Iterable[TrialRecord]) -> Progress:
        """Return how the sweep stands with more trials that ended; each is to come once."""
        records = list(records)
        standing = self.standing.plus(records)
        rivals = records if self.best is None else [self.best, *records]
        try:
            best = pick(rivals, standing.objectives, HALF, standing.baseline).record
        except SweepError:  # nothing that cheap yet
            best = None
        return Progress(standing, best)


@dataclass
class Ledger:
    """The sum of the lines so far.

    Attributes:
        begin: the line that began the sweep; it may come late, where a crash tore an earlier one.
        sweep: the line with which the sweep began, or last went on.
        records: every trial as it was last told of.
        measured: for each trial the measurement of each epoch.
        interrupted: trials that were running when the driver ended.
    """

    begin: Line | None = None
    sweep: Line | None = None
    records: dict[int, TrialRecord] = field(default_factory=dict)
    measured: dict[int, dict[int, Metrics]] = field(default_factory=dict)
    interrupted: set[int] = field(default_factory=set)
    _progress: Progress | None = None
    _pool: Pool = field(default_factory=Pool)

    def add(self, line: Line) -> None:
        """Take a line into account; it may come twice.

        Raises:
            SweepError: not a line as this program writes it.
        """
        with well_formed(f"{OUTBOX}: a line '{line['kind']}'", SweepError):
            match line["kind"]:
                case "start":
                    self.sweep = line
                    self._progress = None
                case "trial_started" | "trial_ended":
                    record = record_from_json(line["record"])
                    self._progress = self.progress_with(record)
                    ended = record.state is not State.RUNNING
                    self.records[record.number] = self._pool.record(record) if ended else record
                    self.interrupted.discard(record.number)
                    self._measure(record.number, record.history)
                case "trial_reported" if line["number"] in self.records:
                    self.interrupted.discard(line["number"])
                    self._measure(line["number"], (Metrics.of(line["metrics"]),))
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

    def progress_with(self, record: TrialRecord) -> Progress:
        """Return how the sweep stands once one trial is as `record` says."""
        known = self.records.get(record.number)
        if self._progress is None or (known is not None and known.state is not State.RUNNING):
            records = {**self.records, record.number: record}
            return self._none.plus(other for _, other in sorted(records.items()) if other.state is not State.RUNNING)
        return self._progress if record.state is State.RUNNING else self._progress.plus([record])

    @property
    def _none(self) -> Progress:
        """How a sweep stands without trials."""
        sweep = self.sweep or self.begin
        assert sweep is not None
        return Progress(Standing(sweep["experiment"]["objectives"], sweep["baseline"]))
