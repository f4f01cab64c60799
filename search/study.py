"""The study: what was proposed, measured and how it ended, in Optuna's storage; and Tune's way to it.

The journal alone suffices to rebuild every record. A searcher holds nothing but the names Tune gave to trials.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search.searcher import Searcher

from pruning import Policy
from search.config import Experiment
from search.errors import SearchError, SweepError
from search.horizon import Horizon
from search.journal import Journal, Storage
from search.ledger import Ledger
from search.measurement import bounds_of, excesses, one_line, read_metrics
from search.results import Metrics, State, TrialRecord
from search.running_time import RunningTime

JOURNAL = "study.journal"
_POLICY, _TUNE_ID, _ERROR, _EPOCH, _NOTE = "policy", "tune_id", "error", "epoch:", "note"
_SOURCE, _WIDTHS, _TWIN = "source", "widths", "same_as"
GP_TRIALS = 200
SEEN = 300
"""From about so many trials and the front tpe learns."""

_ATTEMPTS = 64
"""How many proposals in a row may be known policies before the space counts as searched through."""

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_UNEXPLAINED = "raised an exception, or its worker died"
_STATES = {
    TrialState.RUNNING: State.RUNNING,
    TrialState.COMPLETE: State.FINISHED,
    TrialState.PRUNED: State.STOPPED,
    TrialState.FAIL: State.FAILED,
}


class Proposer(Protocol):
    """Turns the values of a trial into a policy, asking for each dimension only where it exists. Picklable."""

    @property
    def conditional(self) -> bool:
        """Whether some dimensions exist only for some values of others."""
        ...

    def suggest(self, trial: optuna.trial.BaseTrial, widths: Mapping[str, int] | None = None) -> Policy:
        """Ask for every dimension of one trial and return the policy; equal values give equal policies.

        Args:
            trial: who answers.
            widths: the policy's, whatever the answers mean.
        """
        ...


@dataclass(frozen=True)
class Proposal:
    """A policy that somebody else than the sampler wants to have tried.

    Attributes:
        source: in words, where it is from.
        answers: the values of the space that are nearest to it; what is missing is the sampler's to choose.
        widths: its own, whatever widths the answers mean.
    """

    source: str
    answers: dict[str, Any]
    widths: dict[str, int]


class Guide(Protocol):
    """Proposes beside the sampler. Picklable."""

    def proposal(self, number: int, records: Sequence[TrialRecord]) -> Proposal | None:
        """Return what the trial of this number is to try, given every trial so far; None leaves it to the sampler."""
        ...


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
            sampler=_sampler(experiment, number=0),
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
    storage = _storage(folder, journal)
    if not storage.get_all_studies():
        raise SweepError(f"sweep {folder}: {JOURNAL} is empty; remove the folder and run the sweep again")
    with _quiet():
        study = optuna.load_study(study_name=None, storage=storage, sampler=_sampler(experiment, number=0))
    if study.metric_names != list(experiment.objectives):
        names = ", ".join(study.metric_names or ["others"])
        raise SweepError(f"objectives: expected {names} as in {folder}, got {', '.join(experiment.objectives)}")
    return study


def _storage(folder: Path, journal: Journal | None = None) -> Storage:
    return Storage(journal or Journal(folder / JOURNAL))


def _sampler(experiment: Experiment, number: int) -> BaseSampler:
    """Return the sampler of one proposal, seeded by its number: a resumed sweep must not repeat its first proposals."""
    search = experiment.search
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    with _quiet():
        if search.sampler == "random":
            return RandomSampler(seed=seed)
        if search.sampler == "nsga2":
            return NSGAIISampler(population_size=_population(search.trials), seed=seed)
        if search.sampler == "nsga3":
            return NSGAIIISampler(population_size=_population(search.trials), seed=seed)
        if search.sampler == "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        return GPSampler(seed=seed, warn_independent_sampling=False)


def enqueue(study: optuna.Study, proposal: Proposal) -> None:
    """Have a policy tried before anything else is proposed."""
    attributes = {_SOURCE: proposal.source, _WIDTHS: proposal.widths}
    with _quiet():
        study.enqueue_trial(proposal.answers, user_attrs=attributes)


def _misfits(experiment: Experiment, *, conditional: bool) -> Iterator[str]:
    """Yield what a sampler is not made for."""
    sampler, trials = experiment.search.sampler, experiment.search.trials
    if conditional and sampler in ("nsga2", "nsga3", "gp"):
        yield f"{sampler} draws at random what exists only for some choices; tpe learns it"
    if sampler in ("nsga2", "nsga3") and trials <= _population(trials):
        first = f"its first {_population(trials)} trials"
        yield f"{sampler} draws {first} at random, and there are {trials} in all; tpe learns sooner"
    if sampler == "gp" and trials > GP_TRIALS:
        yield f"gp takes seconds for a proposal after some {GP_TRIALS} trials, and there are {trials}; tpe does not"


def _population(trials: int) -> int:
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
    return records(open_study(folder, experiment))


def records(study: optuna.Study) -> list[TrialRecord]:
    """Return every trial that has a policy, in the order of proposal, from the study alone."""
    explained = study.user_attrs
    found = (_record(trial, explained) for trial in study.get_trials(deepcopy=False))
    return [record for record in found if record is not None]


def _record(trial: FrozenTrial, explained: Mapping[str, Any]) -> TrialRecord | None:
    if _POLICY not in trial.user_attrs or trial.state not in _STATES:
        return None
    history, started, ended = _history(trial.user_attrs), trial.datetime_start, trial.datetime_complete
    alive = (ended - started).total_seconds() if started and ended else 0.0
    error = explained.get(f"{_ERROR}:{trial.number}", trial.user_attrs.get(_ERROR))
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        params=dict(trial.params),
        policy=Policy.from_json(trial.user_attrs[_POLICY]),
        history=history,
        feasible=all(excess <= 0 for excess in trial.constraints.values()),
        error=error if trial.state is TrialState.FAIL else None,
        started=started.timestamp() if started else None,
        seconds=history[-1].seconds if history else alive,
        extra={name: trial.user_attrs[name] for name in (_TUNE_ID, _SOURCE, _NOTE) if name in trial.user_attrs},
    )


def _history(attributes: Mapping[str, Any]) -> tuple[Metrics, ...]:
    measured = [Metrics(**value) for name, value in attributes.items() if name.startswith(_EPOCH) and value]
    return tuple(sorted(measured, key=lambda metrics: metrics.epoch))


# ── Tune's searcher ──────────────────────────────────────────────────────────────────────────────────────────────────


def _at_once(
    event: Callable[Concatenate[StudySearcher, _Arguments], _Answer],
) -> Callable[Concatenate[StudySearcher, _Arguments], _Answer]:
    """Write what an event says in one piece."""

    @wraps(event)
    def written(searcher: StudySearcher, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        with searcher.ledger.journal.at_once():
            return event(searcher, *args, **kwargs)

    return written


class StudySearcher(Searcher):
    """Proposes by a study and tells it how trials ended, each exactly once.

    A proposal that Tune does not know (the driver died before Tune wrote it down) is handed out again under its number,
    before anything new is proposed. When the time is up nothing new is; what was proposed goes on to its end. A trial
    whose last measurement is not of its recipe's last epoch was stopped early.

    Without metric and mode: Tune would end the whole sweep at the first result that lacks one.

    Args:
        folder: the sweep's, with its study in it.
        experiment: trials, sampler, objectives and constraints.
        proposer: the searched space.
        baseline: the uncut network's metrics by name, for limits relative to it.

    Attributes:
        time: counts from when the study is opened.

    Raises:
        SweepError: a limit relative to a metric that the baseline lacks.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        proposer: Proposer,
        baseline: Mapping[str, float],
        guide: Guide | None = None,
    ) -> None:
        super().__init__()
        self._folder = folder.resolve()
        self._experiment = experiment
        self._proposer = proposer
        self._guide = guide
        self._exhausted = False
        self._policies: dict[str, int] = {}  # fingerprint → number of the first trial that has it
        self._repeated = 0  # trials that were not launched: an earlier one has their policy
        self._bounds = bounds_of(experiment, baseline)
        self._needed = (*experiment.objectives, *experiment.constraints)
        self._known: dict[str, int] = {}  # Tune's name → number, of trials that have not ended
        self._ledger: Ledger | None = None
        self.time = RunningTime(experiment.search.time_budget)
        for note in _misfits(experiment, conditional=proposer.conditional):
            warnings.warn(f"search.sampler: {note}", stacklevel=2)

    @property
    def study(self) -> optuna.Study:
        """The study itself."""
        return self.ledger.study

    @property
    def ledger(self) -> Ledger:
        """What the study holds, kept up to date; opened on first use."""
        if self._ledger is None:
            journal = Journal(self._folder / JOURNAL)
            study = open_study(self._folder, self._experiment, journal)
            self._ledger = Ledger(study, journal, self._experiment.objectives, _record)
            self._repeated = sum(_TWIN in trial.user_attrs for trial in self._ledger.trials)
            for record in self._ledger.records():
                self._policies.setdefault(record.policy.fingerprint, record.number)
            self.time.begin(study)
        return self._ledger

    def records(self) -> list[TrialRecord]:
        """Return every trial so far, in the order of proposal."""
        return self.ledger.records()

    @property
    def exhausted(self) -> bool:
        """Whether only known policies were proposed at last: the space has no others, or hardly any."""
        return self._exhausted

    def record(self, number: int) -> TrialRecord:
        """Return one trial as it is now."""
        return self.ledger.record(number)

    @property
    def running(self) -> int:
        """How many trials run."""
        return sum(
            trial.state is TrialState.RUNNING and _POLICY in trial.user_attrs for trial in self.ledger.unfinished
        )

    @_at_once
    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Tune forgets FINISHED
        """Return the number, policy (JSON) and params of the next trial, or that all have been proposed.

        A proposal whose policy is that of an earlier trial is not launched: it is told as what the earlier one is, and
        another one is asked for.
        """
        for _ in range(_ATTEMPTS):
            trial = self._next()
            self.time.keep(self.study)
            if trial is None:
                return Searcher.FINISHED
            policy = self._policy(trial)
            if not self._is_known(trial, policy):
                self._known[trial_id] = trial.number
                trial.set_user_attr(_TUNE_ID, trial_id)
                return {"number": trial.number, "policy": trial.user_attrs[_POLICY], "params": trial.params}
        self._exhausted = True
        return Searcher.FINISHED

    def _policy(self, trial: Trial) -> Policy:
        """Return a trial's policy; ask for it, and write it down, where that has not been done."""
        if _POLICY in trial.user_attrs:
            return Policy.from_json(trial.user_attrs[_POLICY])
        widths = trial.user_attrs.get(_WIDTHS)
        try:
            return self._proposer.suggest(trial) if widths is None else self._proposer.suggest(trial, widths)
        except Exception as error:
            self._fail(trial, one_line(error))
            raise

    def _is_known(self, trial: Trial, policy: Policy) -> bool:
        """Return whether an earlier trial has the policy, and tell the study so; else the trial is the first."""
        first = self._policies.setdefault(policy.fingerprint, trial.number)
        if first == trial.number:
            if _POLICY not in trial.user_attrs:
                trial.set_user_attr(_POLICY, policy.model_dump_json())
            return False
        twin = self.ledger.trials[first]
        trial.set_user_attr(_TWIN, first)
        self._repeated += 1
        if twin.state is TrialState.COMPLETE:
            for name, excess in twin.constraints.items():
                trial.set_constraint(name, excess)
            self.study.tell(trial, twin.values)
        else:  # not measured, or not to the end: nothing to learn from it twice
            self.study.tell(trial, state=TrialState.FAIL)
        return True

    @_at_once
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a measurement; what is none is judged when the trial ends."""
        trial = self._running(trial_id)
        if trial is not None:
            with suppress(SearchError):
                _keep(trial, read_metrics(result, self._needed))
            self.time.keep(self.study)
            if result.get(_NOTE) and result[_NOTE] != trial.user_attrs.get(_NOTE):
                trial.set_user_attr(_NOTE, result[_NOTE])

    @_at_once
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended; only the first call for a trial counts."""
        trial = self._running(trial_id)
        if trial is None:
            return
        self.time.keep(self.study)
        try:
            metrics = self._last(trial, result, error)
        except SearchError as fault:
            self._fail(trial, str(fault))
        else:
            self._end(trial, metrics)
        del self._known[trial_id]

    @_at_once
    def explain_failure(self, trial_id: str, error: object) -> None:
        """Say why a trial failed: Tune's searchers hear only that it did, its callbacks hear why, and later.

        Args:
            trial_id: Tune's name of the trial.
            error: an exception, or a text such as that of Tune's error file.
        """
        for trial in self.ledger.trials:
            if trial.user_attrs.get(_TUNE_ID) == trial_id:
                self.study.set_user_attr(f"{_ERROR}:{trial.number}", one_line(error))

    def save(self, checkpoint_path: str) -> None:
        """Write down which trials Tune knows at this moment."""
        Path(checkpoint_path).write_text(json.dumps(self._known), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` wrote: the other trials that still run in the study are proposed again."""
        self._known = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ledger": None, "_policies": {}}

    def _next(self) -> Trial | None:
        unfinished, known = self.ledger.unfinished, set(self._known.values())
        for trial in unfinished:
            if trial.state is TrialState.RUNNING and trial.number not in known:
                return self._again(trial)
        if self.time.left == 0:
            return None
        waiting = sum(trial.state is TrialState.WAITING for trial in unfinished)
        number = len(self.ledger) - waiting
        if number - self._repeated >= self._experiment.search.trials:
            return None
        if self._guide is not None and not waiting:
            found = self._guide.proposal(number, self.records())
            if found is not None:
                enqueue(self.study, found)
        self.study.sampler = self._sampler(number)
        proposed = self.study.ask()
        if isinstance(self.study.sampler, BaseGASampler):  # who was not sampled would be in no generation, nor a parent
            self.study.sampler.get_trial_generation(self.study, self.ledger.trials[proposed.number])
        return proposed

    def _again(self, lost: FrozenTrial) -> Trial:
        """Reopen a proposal. A copy put in the queue would be no parent for NSGA-II: only sampled trials are."""
        self.study.sampler = self._sampler(lost.number)
        return self._open(lost)

    def _sampler(self, number: int) -> BaseSampler:
        sampler = _sampler(self._experiment, number)
        if isinstance(sampler, TPESampler):
            return Horizon(sampler, lambda: self.ledger.seen(SEEN), self.ledger.shapes)
        if isinstance(sampler, NSGAIISampler):
            sampler._search_space = self.ledger.dimensions  # its own would look at every trial again
        return sampler

    def _running(self, trial_id: str) -> Trial | None:
        """Return the trial of Tune's name if it has not ended yet."""
        number = self._known.get(trial_id)
        if number is None:
            return None
        trial = self.ledger.trials[number]
        return self._open(trial) if trial.state is TrialState.RUNNING else None

    def _open(self, trial: FrozenTrial) -> Trial:
        return Trial(self.study, trial._trial_id)

    def _last(self, trial: Trial, result: Mapping[str, Any] | None, error: bool) -> Metrics:
        if error:
            raise SearchError(_UNEXPLAINED)
        if result is not None:
            return read_metrics(result, self._needed)
        history = _history(trial.user_attrs)
        if not history:
            raise SearchError("stopped before it measured anything")
        return history[-1]

    def _fail(self, trial: Trial, error: str) -> None:
        trial.set_user_attr(_ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)

    def _end(self, trial: Trial, metrics: Metrics) -> None:
        _keep(trial, metrics)
        for name, excess in excesses(metrics, self._bounds).items():
            trial.set_constraint(name, excess)
        if metrics.epoch < Policy.from_json(trial.user_attrs[_POLICY]).recipe.epochs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [getattr(metrics, name) for name in self._experiment.objectives])


def _keep(trial: Trial, metrics: Metrics) -> None:
    """Add a measurement to the history; later ones stem from an attempt that was given up."""
    for known in _history(trial.user_attrs):
        if known.epoch > metrics.epoch:
            trial.set_user_attr(f"{_EPOCH}{known.epoch}", None)  # attributes cannot be removed
    trial.set_user_attr(f"{_EPOCH}{metrics.epoch}", metrics.to_dict())
