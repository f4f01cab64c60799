"""Early stopping under Tune: a trial goes on as long as the front has use for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pruning import Policy
from search.config import Experiment
from search.errors import SearchError
from search.measurement import bounds_of, excesses, read_metrics
from search.pareto import point_of
from search.results import Metrics, TrialRecord
from search.rungs import Rungs


def scheduler_of(
    experiment: Experiment, baseline: Mapping[str, float], records: Iterable[TrialRecord]
) -> TrialScheduler:
    """Return the scheduler that an experiment asks for: `ToTheEnd`, or `ParetoASHA`."""
    return ToTheEnd() if experiment.search.scheduler.name == "none" else ParetoASHA(experiment, baseline, records)


class ToTheEnd(FIFOScheduler):
    """Lets every trial run to its end.

    In each of its steps Tune asks what to start; its own scheduler looks through all trials that ever were, twice.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the trial to start: of those that wait the one that was proposed first, then of those that pause."""
        for status in (Trial.PENDING, Trial.PAUSED):
            waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == status]
            if waiting:
                return min(waiting, key=lambda trial: trial.config["number"])
        return None


class ParetoASHA(ToTheEnd):
    """Stops trials that are not among the best at a rung; see `Rungs`.

    Trials beyond limits on costs come last. A limit on accuracy does not count: what is trained gets better, and small
    networks would be the first to go. A result that is no measurement ends its trial, too; the study says why.

    Args:
        experiment: objectives, constraints and `search.scheduler`.
        baseline: the uncut network's metrics by name, for limits relative to it.
        records: trials of an earlier run of the sweep; each counts at the rungs that it reached.

    Raises:
        SweepError: a limit relative to a metric that the baseline lacks.
    """

    def __init__(
        self, experiment: Experiment, baseline: Mapping[str, float], records: Iterable[TrialRecord] = ()
    ) -> None:
        super().__init__()
        self._objectives = experiment.objectives
        self._needed = (*experiment.objectives, *experiment.constraints)
        bounds = bounds_of(experiment, baseline)
        self._bounds = {name: bound for name, bound in bounds.items() if name != "accuracy"}
        self._rungs = Rungs(experiment.search.scheduler.factor, experiment.search.scheduler.first)
        for record in records:
            for metrics in record.history:
                if metrics.epoch in self._rungs.epochs(record.policy.recipe.epochs):
                    self._enter(record.number, metrics)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Judge a trial by what it reports, once at each rung."""
        try:
            metrics = read_metrics(result, self._needed)
        except SearchError:
            return TrialScheduler.STOP
        number, policy = trial.config["number"], Policy.from_json(trial.config["policy"])
        if metrics.epoch not in self._rungs.epochs(policy.recipe.epochs) or not self._enter(number, metrics):
            return TrialScheduler.CONTINUE
        return TrialScheduler.CONTINUE if self._rungs.goes_on(number, metrics.epoch) else TrialScheduler.STOP

    def debug_string(self) -> str:
        """Return a name for Tune's own output."""
        return "ParetoASHA"

    def _enter(self, number: int, metrics: Metrics) -> bool:
        """Enter a measurement at its rung and return whether it is new there."""
        beyond = sum(max(0.0, excess) for excess in excesses(metrics, self._bounds).values())
        return self._rungs.enter(number, metrics.epoch, point_of(metrics, self._objectives), beyond)
