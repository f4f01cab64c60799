"""The study: what was proposed, measured and how it ended, in Optuna's storage.

The journal alone suffices to rebuild every record.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from optuna.trial import FrozenTrial, TrialState

from pruning import Policy
from search.config import Experiment
from search.errors import SweepError
from search.journal import Journal, Storage
from search.reading import well_formed
from search.results import DEVICE, NOTE, PREDICTED, SOURCE, Metrics, State, TrialRecord

JOURNAL = "study.journal"
POLICY, TUNE_ID, ERROR, EPOCH = "policy", "tune_id", "error", "epoch:"
WIDTHS, TWIN = "widths", "same_as"
"""Names of what the study keeps of a trial."""
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


def create_study(folder: Path, experiment: Experiment) -> optuna.Study:
    """Start the study of a new sweep.

    Raises:
        SweepError: the folder holds one already.
    """
    if (folder / JOURNAL).exists():
        raise SweepError(f"sweep {folder}: holds a {JOURNAL} already; resume it, or choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        study = optuna.create_study(
            storage=_storage(folder),
            sampler=make_sampler(experiment, number=0),
            study_name=experiment.name,
            directions=["maximize" if name == "accuracy" else "minimize" for name in experiment.objectives],
        )
        study.set_metric_names(list(experiment.objectives))
    return study


def open_study(folder: Path, experiment: Experiment, journal: Journal | None = None) -> optuna.Study:
    """Open the study of a sweep, to read or to go on; with a journal of the folder, through it.

    Raises:
        SweepError: there is none, or it has other objectives.
    """
    if not (folder / JOURNAL).exists():
        raise SweepError(f"sweep {folder}: expected {JOURNAL}, found none")
    with well_formed(f"sweep {folder}: {JOURNAL}", SweepError):
        storage = _storage(folder, journal)
        if not storage.get_all_studies():
            raise SweepError(f"sweep {folder}: {JOURNAL} is empty; remove the folder and run the sweep again")
        with _quiet():
            study = optuna.load_study(study_name=None, storage=storage, sampler=make_sampler(experiment, number=0))
        metric_names = study.metric_names
    if metric_names != list(experiment.objectives):
        names = ", ".join(map(str, metric_names or ["others"]))
        raise SweepError(f"objectives: expected {names} as in {folder}, got {', '.join(experiment.objectives)}")
    return study


def _storage(folder: Path, journal: Journal | None = None) -> Storage:
    return Storage(journal or Journal(folder / JOURNAL))


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
    with warnings.catch_warnings():
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


def load_records(folder: Path, experiment: Experiment) -> list[TrialRecord]:
    """Return every trial of a sweep, in the order of proposal.

    Raises:
        SweepError: no study there, or one with other objectives.
    """
    with well_formed(f"sweep {folder}: {JOURNAL}", SweepError):
        return records(open_study(folder, experiment))


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
