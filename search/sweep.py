"""Assemble a sweep and run it, or take up an interrupted one: Tune launches, the study proposes, MLflow watches."""

from __future__ import annotations

import io
import json
import shlex
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from ray import tune

from pruning import Policy, PruningError
from search.config import EXPERIMENT, Experiment, load_experiment
from search.errors import SweepError, SweepInterruptedError
from search.figures import front_markdown, front_page, front_table, plot_front, write_front_csv
from search.inputs import Inputs, Say, silent
from search.launching import check_resources, ray_session
from search.pareto import front
from search.prepare import prepare, space_of
from search.progress import LiveView
from search.results import Metrics, State, TrialRecord
from search.scheduler import scheduler_of
from search.space import Space
from search.study import StudySearcher, create_study, load_records
from search.tracking import Tracker
from search.trial import run_trial
from search.units import percent, short_count

BASELINE, WIDTHS, TUNE, SNAPSHOTS, LOCK = "baseline.json", "widths.json", "tune", "snapshots", "sweep.lock"


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder holds it.

    Attributes:
        experiment: what was asked.
        baseline: the network before any cut, by metric; accuracy on the validation images.
        widths: of every channel group before any cut.
        records: every trial, in the order of proposal.
    """

    experiment: Experiment
    folder: Path
    baseline: dict[str, float]
    widths: dict[str, int]
    records: list[TrialRecord]

    @property
    def front(self) -> list[TrialRecord]:
        """The non-dominated trials, cheapest first."""
        return front(self.records, self.experiment.objectives)


def run_sweep(experiment: Experiment, *, say: Say = silent, address: str = "local", live: bool = True) -> Sweep:
    """Run a new sweep to its end.

    Raises:
        SweepError: the folder exists, there is no cluster at the address, or no trial succeeded.
        SearchError, PruningError: something in the experiment does not exist or does not fit; no folder is made.
    """
    experiment = _portable(experiment)
    folder = experiment.folder
    if folder.exists():
        raise SweepError(f"sweep {folder}: exists; resume it, or give the sweep another name with --set name=…")
    check_resources(experiment, address)
    inputs = prepare(experiment, say)
    space = space_of(inputs)
    with ray_session(experiment, address):
        _create(folder, experiment, inputs)
        with _alone(folder):
            return _launch(inputs, space, folder, say, live=live)


def resume_sweep(folder: Path, *, say: Say = silent, address: str = "local", live: bool = True) -> Sweep:
    """Take up a sweep that was interrupted: finished trials stay, interrupted ones go on or start again.

    Raises:
        SweepError: no such sweep, one that is finished or running, or no cluster at the address.
    """
    load_sweep(folder)  # refuses what is none before the lock is written there
    with _alone(folder):
        sweep = load_sweep(folder)
        ended = sum(record.state is not State.RUNNING for record in sweep.records)
        if ended >= sweep.experiment.search.trials:
            raise SweepError(f"sweep {folder}: finished, all {ended} trials have ended")
        check_resources(sweep.experiment, address)
        say(f"resuming {folder}: {ended} of {sweep.experiment.search.trials} trials have ended")
        inputs = prepare(sweep.experiment, say)
        with ray_session(sweep.experiment, address):
            return _launch(inputs, space_of(inputs), sweep.folder, say, live=live)


def load_sweep(folder: Path) -> Sweep:
    """Read what a sweep's folder holds.

    Raises:
        SweepError: no sweep there.
    """
    for name in (EXPERIMENT, BASELINE, WIDTHS):
        if not (folder / name).is_file():
            raise SweepError(f"sweep {folder}: expected a sweep's folder with {name}, found none")
    experiment = load_experiment(folder).model_copy(update={"name": folder.resolve().name})  # it may have moved
    baseline, widths = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (BASELINE, WIDTHS))
    return Sweep(experiment, folder, baseline, widths, load_records(folder, experiment))


def _portable(experiment: Experiment) -> Experiment:
    """Make paths absolute, so that the copy in the sweep's folder means the same."""
    options = dict(experiment.data.options)
    if isinstance(options.get("root"), str):
        options["root"] = str(Path(options["root"]).resolve())
    weights = None if experiment.weights is None else experiment.weights.resolve()
    data = experiment.data.model_copy(update={"options": options})
    return experiment.model_copy(update={"data": data, "weights": weights, "storage": experiment.storage.resolve()})


def _create(folder: Path, experiment: Experiment, inputs: Inputs) -> None:
    folder.mkdir(parents=True)
    create_study(folder, experiment)
    for name, values in ((BASELINE, inputs.baseline.to_dict()), (WIDTHS, inputs.groups.widths)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")  # last: it makes the folder a sweep's


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second driver away; the lock ends with the process that holds it."""
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise SweepError(f"sweep {folder}: is running; another process holds {LOCK}") from None
    with lock:
        yield


# ── launching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _launch(inputs: Inputs, space: Space, folder: Path, say: Say, *, live: bool) -> Sweep:
    experiment, baseline = inputs.experiment, inputs.baseline.to_dict()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        searcher = StudySearcher(folder, experiment, space, baseline)
    for note in notes:
        say(f"note: {note.message}")
    tracker = Tracker(folder, experiment)
    view = LiveView(experiment.search.trials, baseline, experiment.objectives, live=live)
    watcher = _Watcher(folder, searcher, tracker, view)
    with tracker:
        tracker.start(baseline, inputs.groups.widths)
        with view:
            _fit(_tuner(inputs, folder, searcher, watcher))
        sweep = Sweep(experiment, folder, baseline, inputs.groups.widths, searcher.records())
        if any(record.counts for record in sweep.records):
            tracker.sweep_ended(summary(sweep), write_front(sweep))
    if len(sweep.records) < experiment.search.trials or any(r.state is State.RUNNING for r in sweep.records):
        again = f"prunesearch resume {shlex.quote(str(folder))}"
        raise SweepInterruptedError(f"sweep {folder}: interrupted; go on with: {again}")
    if not sweep.front:
        raise SweepError(_why_none(sweep))
    if left := tracker.left:
        send = f"prunesearch sync {shlex.quote(str(folder))}"
        say(f"MLflow is not reachable: {left} entries wait in {folder}; send them with: {send}")
    return sweep


def _why_none(sweep: Sweep) -> str:
    failed = [record for record in sweep.records if record.state is State.FAILED]
    if failed:
        return f"sweep {sweep.folder}: no trial succeeded; {len(failed)} failed, the first with: {failed[0].error}"
    finished = sum(record.state is State.FINISHED for record in sweep.records)
    return f"sweep {sweep.folder}: none of {finished} trials that finished is within the constraints"


def write_front(sweep: Sweep) -> dict[str, Path]:
    """Write the front of a sweep into its folder as table, picture and page; return the files by kind."""
    records, baseline, objectives = sweep.records, sweep.baseline, sweep.experiment.objectives
    files = {kind: sweep.folder / f"front.{kind}" for kind in ("csv", "png", "html")}
    write_front_csv(files["csv"], records, baseline, objectives)
    plot_front(records, baseline, objectives, title=sweep.experiment.name).savefig(files["png"])
    page = front_page(records, baseline, objectives, title=sweep.experiment.name, widths=sweep.widths)
    files["html"].write_text(page, encoding="utf-8")
    return files


def _tuner(inputs: Inputs, folder: Path, searcher: StudySearcher, watcher: tune.Callback) -> tune.Tuner:
    resources, search = inputs.experiment.resources, inputs.experiment.search
    place = {"cpu": resources.cpus, "gpu": resources.gpus}
    trainable = tune.with_resources(tune.with_parameters(_train, inputs=inputs), place)
    storage = folder.resolve()
    run = tune.RunConfig(
        storage_path=str(storage),
        name=_tune_folder(storage),
        verbose=0,
        callbacks=[watcher],
        failure_config=tune.FailureConfig(max_failures=resources.retries),
    )
    how = tune.TuneConfig(
        search_alg=searcher,
        scheduler=scheduler_of(inputs.experiment, inputs.baseline.to_dict(), searcher.records()),
        num_samples=search.trials,
        max_concurrent_trials=search.concurrent,
        reuse_actors=True,
    )
    return tune.Tuner(trainable, tune_config=how, run_config=run)


def _tune_folder(storage: Path) -> str:
    """Return a new name for Tune's files: the study knows what is left to do, Tune starts afresh."""
    return next(name for name in (f"{TUNE}-{number}" for number in count(1)) if not (storage / name).exists())


def _fit(tuner: tune.Tuner) -> None:
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # Tune's banner, which no setting turns off
        warnings.simplefilter("ignore")
        tuner.fit()


def _train(config: dict[str, Any], inputs: Inputs) -> None:
    """Run one trial in a worker; what it raises becomes its result, so that Tune repeats lost workers only."""
    torch.set_num_threads(inputs.experiment.resources.threads)
    policy = Policy.from_json(config["policy"])
    snapshot = _snapshot(inputs.experiment.folder, config["number"])

    def report(metrics: Metrics, state: Callable[[], dict[str, Any]]) -> None:
        if 0 < metrics.epoch < policy.recipe.epochs:
            _write(state(), snapshot)
        tune.report(metrics.to_dict())

    try:
        resume = _read(snapshot)
        if resume is not None:
            tune.report(resume["metrics"])  # the driver may have died before it heard of them
        run_trial(policy, inputs, report, resume)
    except PruningError as error:
        tune.report({"error": str(error)})
    except Exception:
        tune.report({"error": traceback.format_exc()})


def _snapshot(folder: Path, number: int) -> Path:
    """Return where a trial writes what it needs to go on; the driver removes it once the trial has ended."""
    return folder / SNAPSHOTS / f"trial-{number}.pt"


def _write(state: dict[str, Any], snapshot: Path) -> None:
    snapshot.parent.mkdir(exist_ok=True)
    draft = snapshot.with_suffix(".draft")
    torch.save(state, draft)
    draft.replace(snapshot)


def _read(snapshot: Path) -> dict[str, Any] | None:
    """Return what an earlier attempt at the trial left: its worker or the whole sweep was stopped."""
    if not snapshot.exists():
        return None
    state: dict[str, Any] = torch.load(snapshot, weights_only=True, map_location="cpu")
    return state


class _Watcher(tune.Callback):
    """Tells the tracker and the live view what happens; runs in the driver."""

    def __init__(self, folder: Path, searcher: StudySearcher, tracker: Tracker, view: LiveView) -> None:
        self._folder, self._searcher, self._tracker, self._view = folder, searcher, tracker, view

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was launched, or launched again."""
        self._tracker.trial_started(self._record(trial))
        self._refresh()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial measured something."""
        history = self._record(trial).history
        if history:
            self._tracker.trial_reported(trial.config["number"], history[-1])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended by itself, or was stopped early."""
        self._tracker.trial_ended(self._record(trial))
        _snapshot(self._folder, trial.config["number"]).unlink(missing_ok=True)
        self._refresh()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's workers died more often than is allowed."""
        told = Path(trial.error_file) if trial.error_file else None
        reason = told.read_text() if told and told.exists() else "its worker died"
        self._searcher.explain_failure(trial.trial_id, reason)
        self.on_trial_complete(iteration, trials, trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _record(self, trial: Any) -> TrialRecord:
        return next(r for r in self._searcher.records() if r.number == trial.config["number"])

    def _refresh(self) -> None:
        records = self._searcher.records()
        self._view.update(records, sum(record.state is State.RUNNING for record in records))


def summary(sweep: Sweep) -> str:
    """Return what came out, as Markdown."""
    states = Counter(record.state for record in sweep.records)
    ended = ", ".join(f"{number} {state}" for state, number in states.items())
    accuracy, macs = percent(sweep.baseline["accuracy"], 2), short_count(sweep.baseline["macs"])
    rows = front_table(sweep.records, sweep.baseline, sweep.experiment.objectives)
    return (
        f"{len(sweep.records)} trials: {ended}. Baseline: {accuracy} on the validation images, {macs} MACs, "
        f"{short_count(sweep.baseline['params'])} parameters.\n\n{front_markdown(rows)}\n"
    )
