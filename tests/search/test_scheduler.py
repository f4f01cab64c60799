import io
import math
import pickle
import shutil
from collections import Counter
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from optuna.trial import TrialState

from pruning import CriterionSpec, ModelSpec, Policy, Recipe
from search.config import load_experiment, parse_experiment
from search.driver import resume_sweep, run_sweep
from search.prepare import prepare, space_of
from search.results import Metrics, State, TrialRecord
from search.rungs import Rungs
from search.scheduler import ParetoASHA, ToTheEnd, scheduler_of
from search.searcher import StudySearcher
from search.study import open_study
from search.trial import run_trial

BASELINE = {"accuracy": 0.9, "macs": 1000, "params": 500}

# ── without Tune ─────────────────────────────────────────────────────────────────────────────────────────────────────


def experiment(scheduler="pareto_asha", **sections):
    return parse_experiment(
        {"name": "sweep", "model": "resnet20", "search": {"scheduler": scheduler}, "recipe": {"epochs": 9}, **sections}
    )


def policy(epochs=9):
    recipe, criterion = Recipe(epochs=epochs), CriterionSpec(name="l1")
    return Policy(model=ModelSpec(name="resnet20"), network="0" * 16, widths={}, criterion=criterion, recipe=recipe)


def says(scheduler, number, epoch, accuracy=0.5, macs=100, epochs=9, **changes):
    """Return what a scheduler decides as a trial reports."""
    trial = SimpleNamespace(config={"number": number, "policy": policy(epochs).to_json()})
    metrics = Metrics(epoch, accuracy, 1 - accuracy, macs, 50, seconds=1.0).to_dict()
    return scheduler.on_trial_result(None, trial, {**metrics, "training_iteration": epoch + 1, **changes})


def test_a_trial_is_judged_at_rungs_only():
    scheduler = ParetoASHA(experiment(), BASELINE)
    for epoch in range(10):
        assert says(scheduler, 0, epoch, accuracy=0.9) == "CONTINUE"
    decisions = {epoch: says(scheduler, epoch + 1, epoch, accuracy=0.1) for epoch in range(10)}
    assert [epoch for epoch, decision in decisions.items() if decision == "STOP"] == [0, 1, 3]


class Live:
    """Tune's controller, asked for nothing but the trials that have not ended, which it holds in no order."""

    def __init__(self, **numbers):
        trials = [(status, number) for status, those in numbers.items() for number in those]
        self._live = [SimpleNamespace(status=status, config={"number": number}) for status, number in trials]

    def get_live_trials(self):
        return self._live


@pytest.mark.parametrize("scheduler", [ToTheEnd(), ParetoASHA(experiment(), BASELINE)])
@pytest.mark.parametrize(
    ("live", "number"),
    [
        ({"RUNNING": range(9), "PENDING": [30, 12, 400], "PAUSED": [10]}, 12),
        ({"RUNNING": range(9), "PAUSED": [20, 10]}, 10),
        ({"RUNNING": range(9)}, None),
        ({}, None),
    ],
)
def test_what_starts_is_chosen_among_trials_that_have_not_ended_in_the_order_of_proposal(scheduler, live, number):
    chosen = scheduler.choose_trial_to_run(Live(**live))
    assert (chosen and chosen.config["number"]) == number


def test_the_rungs_are_those_of_each_trial_s_own_recipe():
    scheduler = ParetoASHA(experiment(), BASELINE)
    for epoch in (0, 1, 3):
        says(scheduler, 0, epoch, accuracy=0.9)
    assert says(scheduler, 1, 1, accuracy=0.1, epochs=1) == "CONTINUE"
    assert says(scheduler, 2, 3, accuracy=0.1, epochs=8) == "CONTINUE"
    assert says(scheduler, 3, 3, accuracy=0.1, epochs=9) == "STOP"


def test_cheaper_trials_go_on_whatever_their_accuracy_and_dearer_ones_that_are_no_better_do_not():
    scheduler = ParetoASHA(experiment(), BASELINE)
    assert says(scheduler, 0, 0, accuracy=0.9, macs=500) == "CONTINUE"
    assert says(scheduler, 1, 0, accuracy=0.2, macs=100) == "CONTINUE"
    assert says(scheduler, 2, 0, accuracy=0.2, macs=101) == "STOP"
    assert says(scheduler, 3, 0, accuracy=0.89, macs=501) == "STOP"


def test_every_objective_counts():
    scheduler = ParetoASHA(experiment(objectives=["params", "accuracy", "latency_ms"]), BASELINE)
    assert says(scheduler, 0, 0, accuracy=0.5, params=50, latency_ms=5.0) == "CONTINUE"
    assert says(scheduler, 1, 0, accuracy=0.4, params=51, latency_ms=4.9) == "CONTINUE"
    assert says(scheduler, 2, 0, accuracy=0.4, params=51, latency_ms=5.1, macs=1) == "STOP"


def test_a_limit_on_costs_counts_and_one_on_accuracy_that_training_may_still_reach_does_not():
    limited = ParetoASHA(experiment(constraints={"macs": "50%", "params": "20%"}), BASELINE)
    assert says(limited, 0, 0, accuracy=0.9, macs=501) == "CONTINUE"  # nobody else is there
    assert says(limited, 1, 0, accuracy=0.1, macs=500, params=100) == "CONTINUE"
    assert says(limited, 2, 0, accuracy=0.95, macs=400, params=101) == "STOP"
    hopeful = ParetoASHA(experiment(constraints={"accuracy": 0.9}), BASELINE)
    assert says(hopeful, 0, 0, accuracy=0.95, macs=900) == "CONTINUE"
    assert says(hopeful, 1, 0, accuracy=0.1, macs=100) == "CONTINUE"


@pytest.mark.parametrize(
    "changes", [{"accuracy": math.nan}, {"macs": math.inf}, {"latency_ms": None}, {"loss": None}, {"error": "no"}]
)
def test_what_is_no_measurement_ends_the_trial_and_is_on_no_rung(changes):
    scheduler = ParetoASHA(experiment(objectives=["accuracy", "latency_ms"]), BASELINE)
    for epoch in (0, 2):
        assert says(scheduler, 0, epoch, **{"accuracy": 0.9, "latency_ms": 1.0, **changes}) == "STOP"
    assert says(scheduler, 1, 0, accuracy=0.1, latency_ms=9.0) == "CONTINUE"  # the first one there
    assert says(scheduler, 2, 0, accuracy=0.1, latency_ms=9.0) == "CONTINUE"  # of two equal ones none dominates


def test_a_trial_that_starts_over_passes_the_rungs_that_it_passed():
    scheduler = ParetoASHA(experiment(), BASELINE)
    assert says(scheduler, 0, 0, accuracy=0.5) == "CONTINUE"
    assert says(scheduler, 1, 0, accuracy=0.9) == "CONTINUE"
    assert says(scheduler, 0, 0, accuracy=0.5) == "CONTINUE"
    assert says(scheduler, 2, 0, accuracy=0.5) == "STOP"


def stream(trials):
    """Yield number, epoch and what is measured of trials that run two at a time."""
    for number in range(trials):
        for epoch in (0, 1, 3):
            accuracy, macs = (7 * number + epoch) % 11 / 20 + epoch / 10, 100 + 37 * number % 90
            yield number, epoch, accuracy, macs


def test_a_resumed_sweep_decides_as_an_uninterrupted_one():
    def run(scheduler, reports):
        """Return what is decided, and the histories that the study keeps."""
        decisions, histories, stopped = [], {}, set()
        for number, epoch, accuracy, macs in reports:
            if number not in stopped:
                decisions.append((number, epoch, says(scheduler, number, epoch, accuracy, macs)))
                histories.setdefault(number, []).append(Metrics(epoch, accuracy, 1 - accuracy, macs, 50))
                if decisions[-1][-1] == "STOP":
                    stopped.add(number)
        return decisions, histories

    reports, half = list(stream(40)), 60
    expected, _ = run(ParetoASHA(experiment(), BASELINE), reports)
    before, histories = run(ParetoASHA(experiment(), BASELINE), reports[:half])
    records = [
        TrialRecord(number, State.RUNNING, {}, policy(), tuple(history)) for number, history in histories.items()
    ]
    resumed = pickle.loads(pickle.dumps(ParetoASHA(experiment(), BASELINE, records)))
    after, _ = run(resumed, reports[half:])
    assert before + after == expected
    assert Counter(decision for _, _, decision in expected)["STOP"] > 10
    fresh, _ = run(ParetoASHA(experiment(), BASELINE), reports[half:])
    assert fresh != after


def test_only_an_experiment_that_asks_for_it_stops_trials_early():
    assert type(scheduler_of(parse_experiment({"name": "x", "model": "resnet20"}), BASELINE, [])) is ToTheEnd
    assert type(scheduler_of(experiment("none"), BASELINE, [])) is ToTheEnd
    assert isinstance(scheduler_of(experiment({"name": "pareto_asha", "first": 1}), BASELINE, []), ParetoASHA)


# ── a sweep ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FACTOR, TRIALS = 2, 10
RECIPE = {"epochs": 4, "batch_size": 50}


@pytest.fixture(scope="module")
def stopping(local_ray, tmp_path_factory):
    """A sweep whose trials run one after the other, and what was told of it."""
    search = {
        "trials": TRIALS,
        "concurrent": 1,
        "seed": 2,
        "criterion": ["l1", "random"],
        "recipe": {"learning_rate": [0.05, 0.0005]},
        "scheduler": {"name": "pareto_asha", "factor": FACTOR},
    }
    asked = tiny.experiment(tmp_path_factory.mktemp("sweeps"), search=search, recipe=RECIPE)
    with redirect_stdout(io.StringIO()) as out:
        return run_sweep(asked, live=False), out.getvalue()


def last_epochs(records, passed=()):
    """Return where each trial ends if they arrive at the rungs one after the other, some of which are `passed`."""
    rungs, ends = Rungs(FACTOR), []
    for record in records:
        for metrics in record.history:
            if metrics.epoch in (0, 1, 2):
                rungs.enter(record.number, metrics.epoch, (-metrics.accuracy, metrics.macs))
                if (record.number, metrics.epoch) not in passed and not rungs.goes_on(record.number, metrics.epoch):
                    break
        ends.append(metrics.epoch)
    return ends


def test_trials_that_are_behind_at_a_rung_stop_there_and_the_others_finish(stopping):
    sweep, told = stopping
    states = Counter(record.state for record in sweep.records)
    assert states[State.STOPPED] >= 2
    assert states[State.FINISHED] >= 2
    assert states.total() == TRIALS == states[State.STOPPED] + states[State.FINISHED]
    for record in sweep.records:
        assert [metrics.epoch for metrics in record.history] == list(range(record.metrics.epoch + 1))
        assert (record.state is State.FINISHED) == (record.metrics.epoch == RECIPE["epochs"])
        assert record.error is None
    assert [record.metrics.epoch for record in sweep.records] == last_epochs(sweep.records)
    assert {record.state for record in sweep.front} == {State.FINISHED}
    for record in sweep.records:
        line = next(line for line in told.splitlines() if f" trial {record.number} " in line)
        assert (f"stopped after epoch {record.metrics.epoch}" in line) == (record.state is State.STOPPED)


def test_the_study_calls_them_pruned_and_their_snapshots_are_gone(stopping):
    sweep, _ = stopping
    expected = {State.STOPPED: TrialState.PRUNED, State.FINISHED: TrialState.COMPLETE}
    trials = open_study(sweep.folder, sweep.experiment).get_trials()
    assert [trial.state for trial in trials] == [expected[record.state] for record in sweep.records]
    assert any(record.state is State.STOPPED and record.metrics.epoch > 0 for record in sweep.records)
    assert not list(sweep.folder.rglob("trial-*.pt"))


def test_an_interrupted_sweep_goes_on_with_its_rungs(stopping, tmp_path):
    sweep, _ = stopping
    folder = shutil.copytree(sweep.folder, tmp_path / "copy")
    tree = yaml.safe_load((folder / "experiment.yaml").read_text())
    tree["search"]["trials"] += 4
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    interrupt(folder, sweep.baseline)

    resumed = resume_sweep(folder, live=False)
    assert resumed.records[:TRIALS] == sweep.records
    before = {(TRIALS, 0), (TRIALS, 1)}
    assert [record.metrics.epoch for record in resumed.records] == last_epochs(resumed.records, before)
    for record in resumed.records[TRIALS:]:
        assert [metrics.epoch for metrics in record.history] == list(range(record.metrics.epoch + 1))
    assert not list(folder.rglob("trial-*.pt"))


def interrupt(folder, baseline):
    """Leave a trial as a driver does that dies before it hears what the trial measured after its second epoch."""
    asked = load_experiment(folder)
    inputs = prepare(asked)
    searcher = StudySearcher(folder, asked, space_of(inputs), baseline)
    config = searcher.suggest("lost")

    def report(metrics, state):
        if metrics.epoch < 2:
            searcher.on_trial_result("lost", metrics.to_dict())
        elif metrics.epoch == 2:
            (folder / "snapshots").mkdir(exist_ok=True)
            torch.save(state(), folder / "snapshots" / f"trial-{config['number']}.pt")

    run_trial(Policy.from_json(config["policy"]), inputs, report)
