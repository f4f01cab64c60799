"""The study: what was proposed, measured and how it ended, in Optuna's storage.

It alone suffices to rebuild every record. It is a journal in the sweep's folder, or in a database; then the folder has
its name.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from pruning import Policy
from search.config import Experiment
from search.errors import SweepError
from search.journal import Journal, Storage
from search.ledger import Store
from search.reading import read_text, well_formed
from search.results import DEVICE, NOTE, PREDICTED, SOURCE, Metrics, State, TrialRecord

JOURNAL, NAME = "study.journal", "study.name"
POLICY, TUNE_ID, ERROR, EPOCH = "policy", "tune_id", "error", "epoch:"
WIDTHS, TWIN = "widths", "same_as"
"""Names of what the study keeps of a trial."""
_LONGEST_NAME = 1024
_EXTRA = (TUNE_ID, SOURCE, PREDICTED, DEVICE, NOTE)

_STATES = {
    TrialState.RUNNING: State.RUNNING,
    TrialState.COMPLETE: State.FINISHED,
    TrialState.PRUNED: State.STOPPED,
    TrialState.FAIL: State.FAILED,
}


@dataclass(frozen=True)
class Proposal:
    """A policy that somebody else than the sampler wants to have tried.

    Attributes:
        source: in words, where it is from.
        answers: the values of the space that are nearest to it; what is missing is the sampler's to choose.
        widths: its own, whatever widths the answers mean.
        predicted: the `accuracy` that is expected, 0 to 1, its `deviation`, and whether it is that of a `trained`
            network or that after the cut.
    """

    source: str
    answers: dict[str, Any]
    widths: dict[str, int]
    predicted: dict[str, Any] | None = None


# ── the study ────────────────────────────────────────────────────────────────────────────────────────────────────────


def create_study(folder: Path, experiment: Experiment, uri: str | None = None) -> optuna.Study:
    """Start the study of a new sweep.

    Args:
        folder: the sweep's.
        experiment: names the objectives, and the database if there is one.
        uri: the database's address with its password, where the experiment has it without; it is not written down.

    Raises:
        SweepError: the folder holds one already, or the database cannot be used.
    """
    for kept in (JOURNAL, NAME):
        if (folder / kept).exists():
            raise SweepError(f"sweep {folder}: holds a {kept} already; resume it, or choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    uri, name = uri or experiment.study, experiment.name
    if uri is not None:  # sweeps of one name in several folders may share the database
        name = f"{name}-{uuid.uuid4().hex}"
        (folder / NAME).write_text(f"{name}\n", encoding="utf-8")
    with _quiet(), nullcontext(_journal(folder)) if uri is None else _tables(uri) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize" if metric == "accuracy" else "minimize" for metric in experiment.objectives],
        )
        study.set_metric_names(list(experiment.objectives))
    return open_study(folder, experiment, uri)


def open_study(folder: Path, experiment: Experiment, uri: str | None = None) -> optuna.Study:
    """Open the study of a sweep, to read or to go on; its storage is a `Store` of the ledger.

    Raises:
        SweepError: there is none, it has other objectives, or the database cannot be used.
    """
    uri = uri or experiment.study
    kept = JOURNAL if uri is None else NAME
    if not (folder / kept).exists():
        raise SweepError(f"sweep {folder}: expected {kept}, found none")
    with well_formed(f"sweep {folder}: {kept}", SweepError):
        storage = _journal(folder) if uri is None else _database(folder, uri)
        if not storage.get_all_studies():
            raise SweepError(f"sweep {folder}: {JOURNAL} is empty; remove the folder and run the sweep again")
        with _quiet():
            study = optuna.load_study(study_name=None, storage=storage, sampler=make_sampler(experiment, number=0))
        metric_names = study.metric_names
    if metric_names != list(experiment.objectives):
        names = ", ".join(map(str, metric_names or ["others"]))
        raise SweepError(f"objectives: expected {names} as in {folder}, got {', '.join(experiment.objectives)}")
    return study


def check_database(experiment: Experiment) -> None:
    """Make sure that the study's database, if it goes into one, can be used.

    Raises:
        SweepError: it cannot.
    """
    if experiment.study is not None:
        with _quiet(), _tables(experiment.study):
            pass


def _journal(folder: Path) -> Storage:
    return Storage(Journal(folder / JOURNAL))


# SQLAlchemy takes a while to import: only who needs it waits.


def _database(folder: Path, uri: str) -> BaseStorage:
    from search.database import Database

    return Database(uri, read_text(folder / NAME, _LONGEST_NAME, SweepError).strip())


def _tables(uri: str) -> AbstractContextManager[BaseStorage]:
    from search.database import open_tables

    return open_tables(uri)


def make_sampler(experiment: Experiment, number: int) -> BaseSampler:
    """Return the sampler of one proposal, seeded by its number: a resumed sweep must not repeat its first proposals."""
    search = experiment.search
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if search.sampler == "random":
            return RandomSampler(seed=seed)
        if search.sampler == "nsga2":
            return NSGAIISampler(population_size=population(search.trials), seed=seed)
        if search.sampler == "nsga3":
            return NSGAIIISampler(population_size=population(search.trials), seed=seed)
        if search.sampler == "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        return GPSampler(seed=seed, warn_independent_sampling=False)


def enqueue(study: optuna.Study, proposal: Proposal) -> None:
    """Have a policy tried before anything else is proposed."""
    attributes: dict[str, Any] = {SOURCE: proposal.source, WIDTHS: proposal.widths}
    if proposal.predicted is not None:
        attributes[PREDICTED] = proposal.predicted
    with cast(Store, study._storage).at_once(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.enqueue_trial(proposal.answers, user_attrs=attributes)


def population(trials: int) -> int:
    """Return how many trials are a generation of NSGA-II or NSGA-III."""
    return min(50, max(8, trials // 4))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing studies and experimental options."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_records(folder: Path, experiment: Experiment, uri: str | None = None) -> list[TrialRecord]:
    """Return every trial of a sweep, in the order of proposal.

    Raises:
        SweepError: no study there, one with other objectives, or a database that cannot be used.
    """
    with well_formed(f"sweep {folder}: its study", SweepError):
        return records(open_study(folder, experiment, uri))


def records(study: optuna.Study) -> list[TrialRecord]:
    """Return every trial that has a policy, in the order of proposal, from the study alone."""
    explained = study.user_attrs
    found = (record_of(trial, explained) for trial in study.get_trials(deepcopy=False))
    return [record for record in found if record is not None]


def record_of(trial: FrozenTrial, explained: Mapping[str, Any]) -> TrialRecord | None:
    """Return what a trial and the study's attributes say; None of a trial without a policy, or one that waits."""
    if POLICY not in trial.user_attrs or trial.state not in _STATES:
        return None
    history, started, ended = history_of(trial.user_attrs), trial.datetime_start, trial.datetime_complete
    if started and ended:
        ended = max(started, ended)  # clocks jump
    alive = (ended - started).total_seconds() if started and ended else 0.0
    error = explained.get(f"{ERROR}:{trial.number}", trial.user_attrs.get(ERROR))
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        params=trial.params,
        policy=Policy.from_json(trial.user_attrs[POLICY]),
        history=history,
        feasible=all(excess <= 0 for excess in trial.constraints.values()),
        error=error if trial.state is TrialState.FAIL else None,
        started=started.timestamp() if started else None,
        seconds=history[-1].seconds if history else alive,
        ended=ended.timestamp() if ended else None,
        extra={name: trial.user_attrs[name] for name in _EXTRA if name in trial.user_attrs},
    )


def history_of(attributes: Mapping[str, Any]) -> tuple[Metrics, ...]:
    """Return a trial's measurements by epoch, from its attributes."""
    measured = [Metrics.of(value) for name, value in attributes.items() if name.startswith(EPOCH) and value]
    return tuple(sorted(measured, key=lambda metrics: metrics.epoch))
