"""Tune's way to the study: proposes by it, and tells it how trials ended.

A searcher holds nothing but the names Tune gave to trials: the study has the rest.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import optuna
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search.searcher import Searcher

from pruning import Policy
from search.config import Experiment
from search.errors import SearchError, SweepError
from search.horizon import Horizon
from search.ledger import Ledger
from search.measurement import bounds_of, excesses, one_line, read_metrics
from search.results import DEVICE, MEASURED, NOTE, Metrics, TrialRecord
from search.running_time import RunningTime
from search.study import (
    EPOCH,
    ERROR,
    POLICY,
    TUNE_ID,
    TWIN,
    WIDTHS,
    Proposal,
    enqueue,
    history_of,
    make_sampler,
    open_study,
    population,
    record_of,
)

GP_TRIALS = 200
SEEN = 300
"""From about so many trials and the front tpe learns."""

_ATTEMPTS = 64
"""How many proposals in a row may be known policies before the space counts as searched through."""

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_UNEXPLAINED = "raised an exception, or its worker died"


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


class Guide(Protocol):
    """Proposes beside the sampler. Picklable."""

    def proposal(self, number: int, records: Callable[[], Sequence[TrialRecord]]) -> Proposal | None:
        """Return what the trial of this number is to try, given every trial so far; None leaves it to the sampler."""
        ...


def _misfits(experiment: Experiment, *, conditional: bool) -> Iterator[str]:
    """Yield what a sampler is not made for."""
    sampler, trials = experiment.search.sampler, experiment.search.trials
    if conditional and sampler in ("nsga2", "nsga3", "gp"):
        yield f"{sampler} draws at random what exists only for some choices; tpe learns it"
    if sampler in ("nsga2", "nsga3") and trials <= population(trials):
        first = f"its first {population(trials)} trials"
        yield f"{sampler} draws {first} at random, and there are {trials} in all; tpe learns sooner"
    if sampler == "gp" and trials > GP_TRIALS:
        yield f"gp takes seconds for a proposal after some {GP_TRIALS} trials, and there are {trials}; tpe does not"


def _at_once(
    event: Callable[Concatenate[StudySearcher, _Arguments], _Answer],
) -> Callable[Concatenate[StudySearcher, _Arguments], _Answer]:
    """Write what an event says in one piece."""

    @wraps(event)
    def written(searcher: StudySearcher, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        if searcher.fault is not None:
            raise searcher.fault
        try:
            with searcher.ledger.at_once():
                return event(searcher, *args, **kwargs)
        except SweepError as error:
            searcher.fault = error
            raise

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
        guide: proposes beside the sampler.
        uri: the study's database with its password, where the experiment has it without.

    Attributes:
        fault: why the study cannot be written any more; every event raises it again.
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
        *,
        uri: str | None = None,
    ) -> None:
        super().__init__()
        self._folder, self._uri = folder.resolve(), uri
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
        self.fault: SweepError | None = None
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
            study = open_study(self._folder, self._experiment, self._uri)
            self._ledger = Ledger(study, self._experiment.objectives, record_of)
            self._repeated = sum(TWIN in trial.user_attrs for trial in self._ledger.trials)
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
        return self.ledger.running

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
                trial.set_user_attr(TUNE_ID, trial_id)
                return {"number": trial.number, "policy": trial.user_attrs[POLICY], "params": trial.params}
        self._exhausted = True
        return Searcher.FINISHED

    def _policy(self, trial: Trial) -> Policy:
        """Return a trial's policy; ask for it, and write it down, where that has not been done."""
        if POLICY in trial.user_attrs:
            return Policy.from_json(trial.user_attrs[POLICY])
        widths = trial.user_attrs.get(WIDTHS)
        try:
            return self._proposer.suggest(trial) if widths is None else self._proposer.suggest(trial, widths)
        except Exception as error:
            self._fail(trial, one_line(error))
            raise

    def _is_known(self, trial: Trial, policy: Policy) -> bool:
        """Return whether an earlier trial has the policy, and tell the study so; else the trial is the first."""
        first = self._policies.setdefault(policy.fingerprint, trial.number)
        if first == trial.number:
            if POLICY not in trial.user_attrs:
                trial.set_user_attr(POLICY, policy.model_dump_json())
            return False
        twin = self.ledger.trials[first]
        trial.set_user_attr(TWIN, first)
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
                _complete(trial, result.get(MEASURED, ()))
                _keep(trial, read_metrics(result, self._needed))
            self.time.keep(self.study)
            for name in (NOTE, DEVICE):
                if result.get(name) and result[name] != trial.user_attrs.get(name):
                    trial.set_user_attr(name, result[name])

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
        for trial in reversed(self.ledger.trials):  # it is hardly ever an early one
            if trial.user_attrs.get(TUNE_ID) == trial_id:
                self.study.set_user_attr(f"{ERROR}:{trial.number}", one_line(error))
                return

    def save(self, checkpoint_path: str) -> None:
        """Write down which trials Tune knows at this moment."""
        Path(checkpoint_path).write_text(json.dumps(self._known), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` wrote: the other trials that still run in the study are proposed again."""
        self._known = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ledger": None, "_policies": {}, "_uri": None}  # Tune writes it to the disk

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
            found = self._guide.proposal(number, self.records)
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
        sampler = make_sampler(self._experiment, number)
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
        history = history_of(trial.user_attrs)
        if not history:
            raise SearchError("stopped before it measured anything")
        return history[-1]

    def _fail(self, trial: Trial, error: str) -> None:
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)

    def _end(self, trial: Trial, metrics: Metrics) -> None:
        _keep(trial, metrics)
        for name, excess in excesses(metrics, self._bounds).items():
            trial.set_constraint(name, excess)
        if metrics.epoch < Policy.from_json(trial.user_attrs[POLICY]).recipe.epochs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [getattr(metrics, name) for name in self._experiment.objectives])


def _complete(trial: Trial, measured: Iterable[Mapping[str, Any]]) -> None:
    """Add to the history what a trial that goes on had measured before, where the driver that heard of it is lost."""
    for metrics in measured:
        if not trial.user_attrs.get(f"{EPOCH}{metrics['epoch']}"):
            trial.set_user_attr(f"{EPOCH}{metrics['epoch']}", dict(metrics))


def _keep(trial: Trial, metrics: Metrics) -> None:
    """Add a measurement to the history; later ones stem from an attempt that was given up."""
    for known in history_of(trial.user_attrs):
        if known.epoch > metrics.epoch:
            trial.set_user_attr(f"{EPOCH}{known.epoch}", None)  # attributes cannot be removed
    trial.set_user_attr(f"{EPOCH}{metrics.epoch}", metrics.to_dict())
