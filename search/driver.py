"""Run a sweep, or take up an interrupted one: Tune launches, the study proposes, MLflow watches."""

from __future__ import annotations

import errno
import io
import json
import shlex
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ray import tune

from search.config import EXPERIMENT, Experiment
from search.counts import Counts, Event, append_events, counting, counting_into
from search.errors import SweepError, SweepInterruptedError
from search.guide import guide_of
from search.inputs import Inputs, Say, silent
from search.launching import check_resources, ray_session
from search.mirror import kept, pulled
from search.places import discard
from search.prepare import prepare_ahead, space_of
from search.progress import LiveView
from search.results import State, TrialRecord
from search.rules import check_start
from search.running_time import running_seconds
from search.scheduler import scheduler_of
from search.searcher import StudySearcher
from search.servers import know, refuse_stranger
from search.sharing import Shared, prepare_in_task, share
from search.space import Space
from search.starts import make_starts
from search.study import Proposal, check_database, create_study, enqueue
from search.sweep import BASELINE, WIDTHS, Sweep
from search.tracking import Tracker, without_secrets
from search.trainable import EVENTS, SNAPSHOTS, all_events, forget, train
from search.unwritten import going_without, telling
from search.watcher import Watcher

TUNE, LOCK, SHARED = "tune", "sweep.lock", "shared.json"
"""Tune's folders; what one driver holds while it runs; what it writes last, when its report is whole."""

_FAULTS_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def run_sweep(experiment: Experiment, *, say: Say = silent, address: str = "local", live: bool = True) -> Sweep:
    """Run a new sweep to its end.

    Raises:
        SweepError: the folder exists, there is no cluster at the address, or no trial succeeded.
        SearchError, PruningError: something in the experiment does not exist or does not fit; no folder is made.
    """
    know(experiment.tracking.uri, experiment.study)
    told, experiment = experiment, _portable(experiment)
    folder = experiment.folder
    with kept(folder, say):
        if folder.exists():
            raise _taken(folder)
        check_database(told)
        check_resources(experiment, address)
        check_start(experiment)  # refuses what is not there before anything is ranked
        events: list[Event] = []
        with _noted(say), counting(events.append), _prepared(experiment, address, say) as (inputs, shared):
            space = space_of(inputs)
            _create(folder, experiment, inputs, make_starts(experiment, space, say), told.study)
            with _alone(folder):
                append_events(folder / EVENTS, events)
                return _launch(inputs, shared, space, folder, say, live=live, told=told)


def run_or_resume(experiment: Experiment, *, say: Say = silent, address: str = "local", live: bool = True) -> Sweep:
    """Take up the sweep that an experiment was run as, or run it: for jobs that are started again after a failure.

    A sweep that is finished is returned as it is.

    Raises:
        SweepError: the sweep in the experiment's folder was asked something else; see `run_sweep` and `resume_sweep`.
    """
    folder = pulled(experiment.folder)
    if not (folder / EXPERIMENT).is_file():
        return run_sweep(experiment, say=say, address=address, live=live)
    sweep, asked = Sweep.load(folder, study=experiment.study), _portable(experiment)
    trials = max(sweep.experiment.search.trials, asked.search.trials)  # it may have been extended since
    longer = asked.model_copy(update={"search": asked.search.model_copy(update={"trials": trials})})
    if places := _differences(without_secrets(sweep.experiment), longer):
        raise SweepError(f"sweep {folder}: was run with another {', '.join(places)}; give this one another name")
    if sweep.is_finished and (folder / SHARED).exists():
        say(f"{folder} is finished: {sweep.ending}")
        return sweep
    return resume_sweep(folder, say=say, address=address, live=live, told=experiment)


def _differences(one: Experiment, other: Experiment) -> list[str]:
    """Return the places at which two experiments differ, `search.seed` and the like."""
    parts = [_flat(experiment.model_dump(mode="json")) for experiment in (one, other)]
    return [place for place in parts[0] | parts[1] if parts[0].get(place) != parts[1].get(place)]


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {above + name: value}
    return found


def resume_sweep(
    folder: Path, *, say: Say = silent, address: str = "local", live: bool = True, told: Experiment | None = None
) -> Sweep:
    """Take up a sweep that was interrupted: finished trials stay, interrupted ones go on or start again.

    Args:
        folder: the sweep's.
        say: told of every step.
        address: of a Ray cluster to join; `local` starts one on this machine.
        live: whether a live view is shown in a terminal.
        told: has the addresses with their passwords, which the folder does not keep; else the environment has them.

    Raises:
        SweepError: no such sweep, one that is finished or running, or no cluster at the address.
    """
    study = None if told is None else told.study
    folder = Sweep.load(folder, study=study).folder  # refuses what is none before the lock is written there
    with _alone(folder), kept(folder, say):
        sweep = Sweep.load(folder, study=study)
        ended = sum(record.state is not State.RUNNING for record in sweep.records)
        if sweep.is_finished and (folder / SHARED).exists():
            raise SweepError(f"sweep {folder}: finished, {sweep.ending}; add some with: {_more(folder)}")
        if sweep.is_finished:
            with _noted(say):
                return _complete(sweep, say, told)
        say(f"resuming {folder}: {ended} of {sweep.experiment.search.trials} trials have ended")
        return _go_on(sweep, say, address, live=live, told=told)


def extend_sweep(folder: Path, trials: int, *, say: Say = silent, address: str = "local", live: bool = True) -> Sweep:
    """Add trials to a sweep, finished or interrupted; what it has found steers them.

    A time budget that is used up is lifted.

    Raises:
        SweepError: no such sweep, one that is running, fewer than one trial, or no cluster at the address.
    """
    if trials < 1:
        raise SweepError(f"--trials: expected at least 1, got {trials}")
    folder = Sweep.load(folder).folder
    with _alone(folder), kept(folder, say):
        sweep = Sweep.load(folder)
        search = sweep.experiment.search
        budget = None if sweep.time_is_up else search.time_budget
        longer = search.model_copy(update={"trials": search.trials + trials, "time_budget": budget})
        experiment = without_secrets(sweep.experiment.model_copy(update={"search": longer}))
        draft = folder / f"{EXPERIMENT}.draft"
        draft.write_text(experiment.to_yaml(), encoding="utf-8")
        draft.replace(folder / EXPERIMENT)
        say(f"extending {folder} from {search.trials} to {longer.trials} trials")
        return _go_on(replace(sweep, experiment=experiment), say, address, live=live)


def _go_on(sweep: Sweep, say: Say, address: str, *, live: bool, told: Experiment | None = None) -> Sweep:
    if told is None:
        refuse_stranger(sweep.experiment.tracking.uri, f"sweep {sweep.folder}")
    told, experiment = told or sweep.experiment, without_secrets(sweep.experiment)
    check_resources(experiment, address)
    with (
        _noted(say),
        counting_into(sweep.folder / EVENTS),
        _prepared(experiment, address, say) as (inputs, shared),
    ):
        return _launch(inputs, shared, space_of(inputs), sweep.folder, say, live=live, told=told)


def _again(folder: Path) -> str:
    return f"go on with: prunesearch resume {shlex.quote(str(folder))}"


def _more(folder: Path) -> str:
    return f"prunesearch extend {shlex.quote(str(folder))} --trials 20"


def _portable(experiment: Experiment) -> Experiment:
    """Make paths absolute, so that the copy in the sweep's folder means the same; leave out passwords."""
    options = dict(experiment.data.options)
    if isinstance(options.get("root"), str):
        options["root"] = str(Path(options["root"]).resolve())
    weights = None if experiment.weights is None else experiment.weights.resolve()
    data = experiment.data.model_copy(update={"options": options})
    search = experiment.search.with_start_paths(Path.resolve)
    places = {"weights": weights, "storage": experiment.storage.resolve()}
    return without_secrets(experiment.model_copy(update={**places, "data": data, "search": search}))


@contextmanager
def _prepared(experiment: Experiment, address: str, say: Say) -> Iterator[tuple[Inputs, Shared]]:
    """Make what trials share, for as long as Ray runs.

    On this machine what can be refused without Ray is refused before it starts; on a cluster the machines that run
    trials do it.
    """
    if address == "local":
        inputs = prepare_ahead(experiment, say)
        with ray_session(experiment, address):
            yield share(inputs, say)
    else:
        with ray_session(experiment, address):
            yield share(prepare_in_task(experiment, say), say)


def _create(
    folder: Path, experiment: Experiment, inputs: Inputs, starts: Sequence[Proposal], uri: str | None = None
) -> None:
    """Make the folder of a sweep; it is there whole, or not at all.

    Given the address of its study's database, with its password, the study is made there; without a folder nobody
    looks at it.

    Raises:
        SweepError: another process was faster.
    """
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.draft")
    try:
        study = create_study(draft, experiment, uri)
        for start in starts:
            enqueue(study, start)
        for name, values in ((BASELINE, inputs.baseline.to_dict()), (WIDTHS, inputs.groups.widths)):
            (draft / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (draft / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            raise _taken(folder) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _taken(folder: Path) -> SweepError:
    return SweepError(f"sweep {folder}: exists; resume it, or give the sweep another name with --set name=…")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second driver away; the lock ends with the process that holds it."""
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise SweepError(f"sweep {folder}: is running; another process holds {LOCK}") from None
    with lock:
        yield


@contextmanager
def _noted(say: Say) -> Iterator[None]:
    """Say at the end what could not be written."""
    lines: list[str] = []
    try:
        with telling(lines.append):
            yield
    finally:
        for line in dict.fromkeys(lines):
            say(f"note: {line}")


# ── launching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _launch(
    inputs: Inputs, shared: Shared, space: Space, folder: Path, say: Say, *, live: bool, told: Experiment
) -> Sweep:
    experiment, baseline = inputs.experiment, inputs.baseline.to_dict()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        searcher = StudySearcher(folder, experiment, space, baseline, guide_of(inputs, space), uri=told.study)
    for note in notes:
        say(f"note: {note.message}")
    tracker = Tracker(folder, experiment, uri=told.tracking.uri)
    view = LiveView(
        experiment.search.trials, baseline, experiment.objectives, time_left=lambda: searcher.time.left, live=live
    )
    watcher = Watcher(searcher, tracker, view, forget=partial(forget, folder))
    discard(folder / SHARED)
    with tracker:
        tracker.start(baseline, inputs.groups.widths, inputs.facts)
        tracker.trials_ended(searcher.records())
        with view, counting_into(folder / EVENTS), _ended_by_faults(folder, searcher):
            _fit(_tuner(inputs, shared, folder, searcher, watcher))
        seconds = running_seconds(searcher.study)
        sweep = Sweep(experiment, folder, baseline, inputs.groups.widths, searcher.records(), seconds)
        _report(sweep, tracker, say)
    return _ended(sweep, tracker, say, exhausted=searcher.exhausted)


def _complete(sweep: Sweep, say: Say, told: Experiment | None) -> Sweep:
    """Make the report of a sweep whose trials have all ended, but whose driver died before it was whole."""
    if told is None:
        refuse_stranger(sweep.experiment.tracking.uri, f"sweep {sweep.folder}")
    say(f"{sweep.folder}: {sweep.ending}; what its report lacks is made now")
    experiment = without_secrets(sweep.experiment)
    with Tracker(sweep.folder, experiment, uri=(told or experiment).tracking.uri) as tracker:
        tracker.start(sweep.baseline, sweep.widths)
        _report(sweep, tracker, say)
    return _ended(sweep, tracker, say)


def _report(sweep: Sweep, tracker: Tracker, say: Say) -> None:
    """Draw what came out, and tell MLflow."""
    for line, trials in Counter(part for record in sweep.records for part in _notes(record)).items():
        say(f"note: {line} ({trials} of {len(sweep.records)} trials)")
    tracker.trials_ended(sweep.records)
    if sweep.records:
        with going_without("the report is not whole, `prunesearch front` draws it"):
            tracker.sweep_ended(sweep.summary, sweep.draw(say))


def _ended(sweep: Sweep, tracker: Tracker, say: Say, *, exhausted: bool = False) -> Sweep:
    """Write down that a driver has come to its end, and say what it leaves.

    Raises:
        SweepInterruptedError: trials are missing.
        SweepError: none succeeded.
    """
    folder, counts = sweep.folder, Counts()
    with going_without(f"{SHARED} is not whole"):
        counts = Counts(all_events(folder))
        (folder / SHARED).write_text(counts.to_json() + "\n", encoding="utf-8")
    trials = sweep.experiment.search.trials
    if exhausted and len(sweep.records) < trials:
        say(f"note: the space has hardly another policy: {len(sweep.records)} of {trials} trials")
    elif not sweep.is_finished:
        raise SweepInterruptedError(f"sweep {folder}: interrupted; {_again(folder)}")
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)  # a driver that died may have left some
    if sweep.time_is_up:
        say(sweep.ending)
    if not sweep.front:
        raise SweepError(sweep.why_none)
    say(f"shared work: {counts}")
    if tracker.left or tracker.problem:
        send = f"prunesearch sync {shlex.quote(str(folder))}"
        reason = tracker.problem or "it is slow"
        say(f"MLflow: {reason}; {tracker.left} entries wait in {folder}; send them with: {send}")
    return sweep


def _notes(record: TrialRecord) -> list[str]:
    """Return what a trial had to go without."""
    note = record.extra.get("note")
    return str(note).splitlines() if note else []


@contextmanager
def _ended_by_faults(folder: Path, searcher: StudySearcher) -> Iterator[None]:
    """Tell of a disk that is full or a database that is gone in one line: what has ended is kept, the rest can go on.

    Raises:
        SweepInterruptedError: the study cannot be written.
        SweepError: a disk cannot.
    """
    try:
        yield
    except Exception as error:  # Tune makes a text of some
        if searcher.fault is not None:
            raise SweepInterruptedError(f"{searcher.fault}; {_again(folder)}") from None
        inner: BaseException | None = error
        while inner is not None and getattr(inner, "errno", None) not in _FAULTS_OF_DISKS:
            inner = inner.__cause__ or inner.__context__
        if not isinstance(inner, OSError):
            raise
        place = folder if inner.filename is None else inner.filename
        reason = f"{place}: {inner.strerror}; what has ended is kept; with room again {_again(folder)}"
        raise SweepError(reason) from None


def _tuner(inputs: Inputs, shared: Shared, folder: Path, searcher: StudySearcher, watcher: tune.Callback) -> tune.Tuner:
    resources, search = inputs.experiment.resources, inputs.experiment.search
    place = {"cpu": resources.cpus, "gpu": resources.gpus, "memory": resources.memory_bytes}
    trainable = tune.with_resources(tune.with_parameters(train, shared=shared), place)
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
