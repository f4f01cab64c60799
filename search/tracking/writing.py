"""What each line of an outbox means in MLflow: one parent run for the sweep, one nested run for each trial."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from search.config import Experiment
from search.errors import SweepError
from search.pareto import front, value_of
from search.results import DEVICE, NOTE, SOURCE, Metrics, State, TrialRecord
from search.tracking.ledger import Ledger, record_from_json
from search.tracking.outbox import Line
from search.tracking.runs import Runs

CURVES = ("accuracy", "loss", "seconds")
"""Metrics that have a point for every epoch; the others get one when they change, as costs hardly do."""

COMPARED = 40
"""Runs in the link that compares the front's; the address of more would be too long."""

_log = logging.getLogger(__name__)
_STATUS = {State.FINISHED: "FINISHED", State.FAILED: "FAILED", State.STOPPED: "KILLED"}


class Writing:
    """Writes lines into the runs of a sweep. The ledger knows what the lines before them said.

    Args:
        runs: of this sweep.
        sweep: the line that began it.
        ledger: brought up to date by the caller after each line.
        folder: the sweep's, where the files of the last line are.
    """

    def __init__(self, runs: Runs, sweep: Line, ledger: Ledger, folder: Path) -> None:
        self._runs, self._ledger, self._folder = runs, ledger, folder
        self._experiment = Experiment.model_validate((ledger.sweep or sweep)["experiment"])
        self._baseline: dict[str, float] = sweep["baseline"]
        self._parent = runs.ensure(None, self._experiment.name, sweep["time"], {"mlflow.source.name": "prunesearch"})

    def write(self, lines: list[Line]) -> None:
        """Write one line, or several that all report measurements."""
        if not lines:
            return
        line = lines[0]
        match line["kind"]:
            case "start":
                self._start(line)
            case "trial_started":
                self._trial_started(record_from_json(line["record"]), line["time"])
            case "trial_reported":
                self._trials_reported(lines)
            case "trial_ended":
                self._trial_ended(record_from_json(line["record"]), line["time"])
            case "sweep_ended":
                self._sweep_ended(line)
            case "closed":
                self._closed(line)

    # ── the sweep ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, line: Line) -> None:
        tags = {"state": State.RUNNING.value, **line["tags"]}
        self._experiment = Experiment.model_validate(line["experiment"])  # a resumed sweep may ask for more trials
        if self._ledger.sweep:
            self._runs.revive(self._parent)
            self._runs.log(self._parent, tags=tags)
        else:
            baseline = [(f"baseline_{name}", value, line["time"], 0) for name, value in self._baseline.items()]
            self._runs.log(self._parent, params=_asked(self._experiment), metrics=baseline, tags=tags)
        self._runs.text(self._parent, line["yaml"], "experiment.yaml")
        if line["widths"]:
            rows = "".join(f"{name},{width}\n" for name, width in line["widths"].items())
            self._runs.text(self._parent, f"group,channels\n{rows}", "groups.csv")

    def _progress(self, record: TrialRecord, time: int) -> None:
        """Write how the sweep stands after one more trial."""
        progress = self._ledger.progress_with(record)
        standing, ended = progress.standing, progress.standing.ended.total()
        values = {"trials_ended": float(ended), "front_size": float(len(standing.front))}
        with suppress(SweepError):  # an objective that the baseline did not measure
            values["hypervolume"] = standing.hypervolume
        if progress.best is not None:
            values["best_accuracy_under_50pct_macs"] = value_of(progress.best, "accuracy") or 0.0
        self._runs.log(self._parent, metrics=[(name, value, time, ended) for name, value in values.items()])

    def _sweep_ended(self, line: Line) -> None:
        for name, content in line["artifacts"].items():
            if "text" in content:
                self._runs.text(self._parent, content["text"], name)
            elif not (path := self._folder / content["path"]).resolve().is_relative_to(self._folder.resolve()):
                _log.warning("%s is not in the sweep's folder and not sent to MLflow", path)
            elif path.is_file():
                self._runs.file(self._parent, path, _place(path))
            else:
                _log.warning("%s is gone and not sent to MLflow", path)
        members = front(list(self._ledger.records.values()), self._experiment.objectives)
        ids = {record.number: self._run(record, line["time"]) for record in members}
        self._tag_front(set(ids.values()))
        self._runs.log(self._parent, tags={"mlflow.note.content": self._note(line, ids)})

    def _tag_front(self, run_ids: set[str]) -> None:
        """Mark the runs of the front, and those that were on it before the sweep was extended."""
        for run_id in self._runs.tagged("front", "true") - run_ids:
            self._runs.log(run_id, tags={"front": "false"})
        for run_id in sorted(run_ids):
            self._runs.log(run_id, tags={"front": "true"})

    def _note(self, line: Line, ids: Mapping[int, str]) -> str:
        """Put links above the summary, for MLflow's page hides what comes after a few lines."""
        links = []
        if "report" in line["artifacts"]:
            links.append(f"[Report with all pictures]({self._runs.link(self._parent, 'figures/report.html')})")
        members = dict(list(ids.items())[:COMPARED])
        if members:
            links.append(f"[Compare the runs of the front]({self._runs.compare_link(list(members.values()))})")
        runs = ", ".join(f"[trial {number}]({self._runs.link(run_id)})" for number, run_id in members.items())
        parts = [" · ".join(links), line["summary"].strip(), f"Runs of the front: {runs}" if runs else ""]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _closed(self, line: Line) -> None:
        """End what has not ended: the driver left, whether all is done or not."""
        for number in self._ledger.running:
            run_id = self._run(self._ledger.records[number], line["time"])
            self._runs.log(run_id, tags={"state": "interrupted"})
            self._runs.end(run_id, "KILLED", line["time"])
        unfinished = self._ledger.running or len(self._ledger.records) < self._experiment.search.trials
        state, status = ("interrupted", "KILLED") if unfinished else ("finished", "FINISHED")
        self._runs.log(self._parent, tags={"state": state})
        self._runs.end(self._parent, status, line["time"])

    # ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, record: TrialRecord, time: int) -> str:
        """Return a trial's run; make it if there is none, or if somebody deleted it."""
        start = int(1000 * record.started) if record.started else time
        return self._runs.ensure(record.number, self._name(record), start, {"policy": record.policy.fingerprint})

    def _trial_started(self, record: TrialRecord, time: int) -> None:
        run_id = self._run(record, time)
        tags = {"state": State.RUNNING.value}
        if record.number in self._ledger.records:
            self._runs.revive(run_id)
            self._runs.log(run_id, tags=tags)
        else:
            self._runs.log(run_id, params=_decided(record, self._experiment), tags=tags)
            self._runs.text(run_id, record.policy.to_json(), "policy.json")
        self._measured(record, [(metrics, time) for metrics in record.history])

    def _trials_reported(self, lines: list[Line]) -> None:
        """Write measurements, in one call for each trial."""
        reports: dict[int, list[tuple[Metrics, int]]] = {}
        for line in lines:
            reports.setdefault(line["number"], []).append((Metrics.of(line["metrics"]), line["time"]))
        for number, measurements in reports.items():
            record = self._ledger.records.get(number)
            if record is None:
                continue  # the end of the trial brings them
            if number in self._ledger.interrupted:
                self._runs.revive(self._run(record, measurements[0][1]))
            self._measured(record, measurements)

    def _measured(self, record: TrialRecord, measurements: Iterable[tuple[Metrics, int]]) -> None:
        """Write what is new among measurements, and the cost into the run's name once it is known."""
        news = {it.epoch: (it, time) for it, time in measurements if self._ledger.is_new(record.number, it)}
        if not news:
            return
        known = self._ledger.measured.get(record.number, {})
        written = self._values(known[max(known)]) if known else {}
        points = []
        for epoch, (metrics, time) in news.items():
            values = self._values(metrics)
            points += [
                (name, value, time, epoch)
                for name, value in values.items()
                if name in CURVES or written.get(name) != value
            ]
            written = values
        metrics, time = next(iter(news.values()))
        run_id = self._run(record, time)
        self._runs.log(run_id, metrics=points)
        if not known:
            self._runs.rename(run_id, self._name(record, metrics))

    def _values(self, metrics: Metrics) -> dict[str, float]:
        """Return a measurement by the names under which MLflow shows it."""
        return {name: value for name, value in metrics.to_dict().items() if name != "epoch"} | self._shares(metrics)

    def _shares(self, metrics: Metrics) -> dict[str, float]:
        """Return what is left of each cost of the baseline, as parts of it: `macs_share` and so on."""
        costs = {name: getattr(metrics, name) for name in ("macs", "params", "latency_ms")}
        known = {name: cost for name, cost in costs.items() if cost is not None and self._baseline.get(name)}
        return {f"{name.removesuffix('_ms')}_share": cost / self._baseline[name] for name, cost in known.items()}

    def _trial_ended(self, record: TrialRecord, time: int) -> None:
        known = self._ledger.records.get(record.number)
        if known == record:
            return
        if known is None:
            self._trial_started(record, time)
        else:
            self._measured(record, [(metrics, time) for metrics in record.history])
        run_id = self._run(record, time)
        told = {name: record.extra[name] for name in (SOURCE, DEVICE, NOTE) if name in record.extra}
        if record.error:
            told["error"] = record.error
        self._runs.log(run_id, tags={"state": record.state.value, "feasible": str(record.feasible).lower(), **told})
        started = int(1000 * record.started) if record.started else time
        self._runs.end(run_id, _STATUS.get(record.state, "KILLED"), max(started, time))  # clocks jump
        self._progress(record, time)

    def _name(self, record: TrialRecord, metrics: Metrics | None = None) -> str:
        """Return `trial-007 fpgm 48% MACs`; without the cost before it is known."""
        name = f"trial-{record.number:03d} {record.criterion}"
        metrics, full = metrics or record.metrics, self._baseline.get("macs")
        return f"{name} {100 * metrics.macs / full:.0f}% MACs" if metrics and full else name


def _asked(experiment: Experiment) -> dict[str, Any]:
    """Return what a sweep was asked, by the names under which MLflow shows it."""
    search = experiment.search
    return {
        "model": experiment.model.name,
        "data": experiment.data.name,
        "weights": experiment.weights or "trained",
        "objectives": ", ".join(experiment.objectives),
        "constraints": ", ".join(f"{name} {limit}" for name, limit in experiment.constraints.items()) or "none",
        "sampler": search.sampler,
        "scheduler": search.scheduler,
        "trials": search.trials,
        "concurrent": search.concurrent,
        "seed": search.seed,
        "groups": ", ".join(search.groups),
        "thinned": ", ".join(search.thinned) or "none",
        "criterion": ", ".join(criterion.name for criterion in search.criterion),
        "allocation": ", ".join(map(str, search.allocation)),
        "auxiliary": str(search.auxiliary),
        "auxiliary.schedule": experiment.auxiliary.schedule,
        **{f"recipe.{name}": value for name, value in experiment.recipe.model_dump(mode="json").items()},
    }


def _decided(record: TrialRecord, experiment: Experiment) -> dict[str, Any]:
    """Return what a trial decided: the searched values, and criterion, allocation and auxiliary losses in any case."""
    allocations = experiment.search.allocation
    fixed: dict[str, Any] = {"allocation": allocations[0]} if len(allocations) == 1 else {}
    if (auxiliary := record.policy.auxiliary) is not None:
        fixed |= {
            "auxiliary.count": auxiliary.heads,
            "auxiliary.positions": str(auxiliary),
            "auxiliary.head": auxiliary.head,
            "auxiliary.weight": auxiliary.weight,
        }
    # Free places were proposed as numbers that mean nothing by themselves.
    searched = {name: value for name, value in record.params.items() if not name.startswith("auxiliary.position.")}
    mixed = {"criterion": record.criterion} if record.policy.criteria else {}
    return {"criterion": record.criterion, **fixed, **searched, **mixed}


def _place(path: Path) -> str:
    """Return where a file goes among a run's artifacts."""
    return f"figures/{path.name}" if path.suffix in (".png", ".html") else path.name
