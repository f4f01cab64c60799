"""A sweep as its folder holds it: what was asked, every trial, and what came out; and from Python the way through."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning import Policy
from search.apply import Applied, apply_policy
from search.config import EXPERIMENT, Experiment, load_experiment
from search.errors import SweepError
from search.figures import Subject, front_cells, front_markdown, front_table, table_html, write_report
from search.inputs import Say, silent
from search.mirror import pulled
from search.pareto import Choice, Limits, front, pick, pick_knee
from search.places import path_of
from search.reading import LARGEST_WIDTH, read_json
from search.results import State, TrialRecord
from search.running_time import running_seconds
from search.sections import written_duration
from search.servers import refuse_stranger
from search.study import load_records, open_study
from search.units import percent, short_count

BASELINE, WIDTHS = "baseline.json", "widths.json"


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder holds it.

        sweep = Sweep.run("experiments/digits.yaml", {"search.trials": 12})   # or Sweep.load("sweeps/digits")
        choice = sweep.best(max_macs="50%")
        applied = sweep.apply(choice.policy, "pruned")

    Attributes:
        experiment: what was asked.
        baseline: the network before any cut, by metric; accuracy on the validation images.
        widths: of every channel group before any cut.
        records: every trial, in the order of proposal.
        running_seconds: how long it has run, where its time is limited.
    """

    experiment: Experiment
    folder: Path
    baseline: dict[str, float]
    widths: dict[str, int]
    records: list[TrialRecord]
    running_seconds: float = 0.0

    # ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def run(
        experiment: Experiment | Path | str,
        settings: Mapping[str, Any] | None = None,
        *,
        say: Say = print,
        address: str = "local",
    ) -> Sweep:
        """Run a new sweep to its end; see `search.driver.run_sweep`.

        Args:
            experiment: a file, or what is in one.
            settings: values of the file to change, by place: `{"search.trials": 12}`.
            say: told of every step.
            address: of a Ray cluster to join; `local` starts one on this machine.

        Raises:
            SearchError, PruningError: a mistake, in one line.
        """
        from search.driver import run_sweep

        if not isinstance(experiment, Experiment):
            changes = [f"{place}={json.dumps(value)}" for place, value in (settings or {}).items()]
            experiment = load_experiment(path_of(experiment), changes)
        elif settings:
            raise SweepError("settings: expected an experiment's file that they change, got an experiment")
        return run_sweep(experiment, say=say, address=address, live=False)

    @classmethod
    def load(cls, folder: Path | str, *, study: str | None = None) -> Sweep:
        """Read what a sweep's folder holds, or an address, finished or not.

        Args:
            folder: the sweep's.
            study: the address of its database with the password, which the folder does not keep.

        Raises:
            SweepError: no sweep there.
            PlaceError: an address that cannot be read.
        """
        folder = pulled(path_of(folder))
        for name in (EXPERIMENT, BASELINE, WIDTHS):
            if not (folder / name).is_file():
                raise SweepError(f"sweep {folder}: expected a sweep's folder with {name}, found none")
        experiment = load_experiment(folder).model_copy(update={"name": folder.resolve().name})  # it may have moved
        baseline, widths = _read_baseline(folder / BASELINE), _read_widths(folder / WIDTHS)
        if study is None:
            refuse_stranger(experiment.study, f"sweep {folder}")
        limited = experiment.search.time_budget is not None
        seconds = running_seconds(open_study(folder, experiment, study)) if limited else 0.0
        return cls(experiment, folder, baseline, widths, load_records(folder, experiment, study), seconds)

    def extend(self, trials: int, *, say: Say = print, address: str = "local") -> Sweep:
        """Run some more trials and return the longer sweep; see `search.driver.extend_sweep`."""
        from search.driver import extend_sweep

        return extend_sweep(self.folder, trials, say=say, address=address, live=False)

    # ── what came out ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def time_is_up(self) -> bool:
        """Whether its time ended the sweep, before all trials were proposed."""
        budget, trials = self.experiment.search.time_budget, self.experiment.search.trials
        return budget is not None and self.running_seconds >= budget and len(self.records) < trials

    @property
    def is_finished(self) -> bool:
        """Whether all that was proposed has ended, and nothing more will be."""
        running = any(record.state is State.RUNNING for record in self.records)
        return not running and (self.time_is_up or len(self.records) >= self.experiment.search.trials)

    @property
    def ending(self) -> str:
        """What ended a sweep that is finished, in words."""
        if not self.time_is_up:
            return f"all {len(self.records)} trials have ended"
        budget, trials = self.experiment.search.time_budget, self.experiment.search.trials
        return f"its time of {written_duration(budget or 0)} was up after {len(self.records)} of {trials} trials"

    @property
    def why_none(self) -> str:
        """Why there is no front, in words."""
        failed = [record for record in self.records if record.state is State.FAILED]
        if failed:
            return f"sweep {self.folder}: no trial succeeded; {len(failed)} failed, the first with: {failed[0].error}"
        finished = sum(record.state is State.FINISHED for record in self.records)
        return f"sweep {self.folder}: none of {finished} trials that finished is within the constraints"

    @property
    def front(self) -> list[TrialRecord]:
        """The non-dominated trials, cheapest first."""
        return front(self.records, self.experiment.objectives)

    @property
    def summary(self) -> str:
        """What came out, as Markdown."""
        ending = f"; {self.ending}" if self.time_is_up else ""
        rows = front_table(self.records, self.baseline, self.experiment.objectives)
        return f"{self._counted}{ending}. {self._uncut}\n\n{front_markdown(rows)}\n"

    def best(self, *, trial: int | None = None, knee: bool = False, **limits: str | float | None) -> Choice:
        """Return the most accurate trial within limits, and why it is: `best(max_macs="50%").policy`.

        Args:
            trial: take this one instead.
            knee: take the knee of the front within the limits, after which accuracy gets dear.
            limits: `max_macs`, `max_params`, `max_latency_ms`, `min_accuracy`; numbers, or `"50%"` of the baseline's.

        Raises:
            SweepError: no trial is within the limits (the nearest is named), or no such trial or limit.
        """
        if knee and trial is not None:
            raise SweepError(f"knee: expected no trial beside it, got trial {trial}")
        records = [record for record in self.records if trial in (None, record.number)]
        if trial is not None and not records:
            raise SweepError(f"trial {trial}: expected one of the sweep's {len(self.records)}, counted from 0")
        choose = pick_knee if knee else pick
        return choose(records, self.experiment.objectives, Limits.parse(**limits), self.baseline)

    def apply(self, policy: Policy, folder: Path | str, *, say: Say = print) -> Applied:
        """Cut and fine-tune the baseline by a policy, test both networks once; see `search.apply.apply_policy`."""
        return apply_policy(policy, load_experiment(self.folder), Path(folder), say)

    def draw(self, say: Say = silent) -> dict[str, Path]:
        """Write the front and all pictures into the sweep's folder; return the files by name.

        A picture that cannot be drawn is told of, and stops nothing.
        """
        subject = Subject.of(self.experiment, self.records, self.baseline, self.widths)
        return write_report(subject, self.folder, say)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        table = table_html(*front_cells(front_table(self.records, self.baseline, self.experiment.objectives)))
        return f"<p>{self._counted}. {self._uncut}</p>{table}"

    @property
    def _counted(self) -> str:
        states = Counter(record.state for record in self.records)
        return f"{len(self.records)} trials: {', '.join(f'{number} {state}' for state, number in states.items())}"

    @property
    def _uncut(self) -> str:
        accuracy, macs = percent(self.baseline["accuracy"], 2), short_count(self.baseline["macs"])
        params = short_count(self.baseline["params"])
        return f"Baseline: {accuracy} on the validation images, {macs} MACs, {params} parameters."


def _read_baseline(path: Path) -> dict[str, float]:
    values = read_json(path, SweepError)
    if not isinstance(values, dict) or not {"accuracy", "macs", "params"} <= values.keys():
        raise SweepError(f"{path}: expected accuracy, macs and params, got others")
    for name, value in values.items():
        compared = name in ("accuracy", "macs", "params")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (compared and not 0 < value < 2**63):
            raise SweepError(f"{path}: {name}: expected a number, got {value!r}")
    return values


def _read_widths(path: Path) -> dict[str, int]:
    values = read_json(path, SweepError)
    if not isinstance(values, dict):
        raise SweepError(f"{path}: expected channels of each group, got {type(values).__name__}")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_WIDTH:
            raise SweepError(f"{path}: {name}: expected 1 to {LARGEST_WIDTH:,} channels, got {value!r}")
    return values
