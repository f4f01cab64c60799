import logging
import math
import pickle
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.searcher import Searcher

from pruning import CriterionSpec, ModelSpec, Policy, Recipe
from search.config import parse_experiment
from search.errors import SweepError
from search.results import MEASURED, Metrics, State
from search.searcher import StudySearcher
from search.study import create_study, load_records, open_study

BASELINE = {"accuracy": 0.9, "macs": 1000, "params": 500}
EPOCHS = 2


class TwoBranches:
    """Three dimensions, one of which exists only where the widths are searched."""

    conditional = True

    def suggest(self, trial):
        criterion = trial.suggest_categorical("criterion", ["l1", "fpgm"])
        if trial.suggest_categorical("allocation", ["searched", "uniform"]) == "searched":
            width = trial.suggest_int("width", 1, 16)
        else:
            width = round(16 * trial.suggest_float("budget", 0.1, 0.9)) or 1
        return Policy(
            model=ModelSpec(name="resnet20"),
            network="f" * 16,
            widths={"conv1": width},
            criterion=CriterionSpec(name=criterion),
            recipe=Recipe(epochs=EPOCHS),
            seed=trial.number,
        )


class OneBranch(TwoBranches):
    conditional = False


def experiment(**settings):
    search = {"trials": 12, "sampler": "random", **settings.pop("search", {})}
    return parse_experiment({"name": "sweep", "model": "resnet20", "search": search, **settings})


def measured(config, epoch=EPOCHS, **changes):
    """More channels: more accurate, and more MACs. Nothing is random."""
    width = Policy.from_json(config["policy"]).widths["conv1"]
    accuracy = 0.9 * (1 - 0.5 ** (width / 4)) * (1 - 0.3 / (1 + epoch))
    metrics = Metrics(epoch, accuracy, 1 - accuracy, macs=60 * width, params=30 * width, seconds=1.0 + epoch)
    return {**metrics.to_dict(), "training_iteration": epoch + 1, "done": epoch == EPOCHS, **changes}


@pytest.fixture
def start(tmp_path):
    """Starts the study of an experiment, or goes on with it, and returns a searcher."""

    def searcher(asked=None, proposer=None, baseline=BASELINE):
        asked = asked or experiment()
        if not (tmp_path / "study.journal").exists():
            create_study(tmp_path, asked)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return StudySearcher(tmp_path, asked, proposer or TwoBranches(), baseline)

    return searcher


def finish(searcher, name, config, **changes):
    for epoch in range(EPOCHS):
        searcher.on_trial_result(name, measured(config, epoch))
    searcher.on_trial_complete(name, measured(config, **changes))


def run(searcher, trials, first=0):
    for number in range(first, first + trials):
        finish(searcher, f"t{number}", searcher.suggest(f"t{number}"))


def states(searcher):
    return Counter(trial.state for trial in searcher.study.get_trials())


# ── proposing and telling ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe", "gp"])
def test_every_sampler_ends_a_constrained_sweep_with_no_trial_running(start, sampler):
    asked = experiment(search={"sampler": sampler, "trials": 18}, constraints={"macs": "60%", "accuracy": "30%"})
    searcher = start(asked)
    open_trials = {}
    for number in range(18):  # two at a time, as a sweep does; some fail, some stop early; models start after 10
        open_trials[f"t{number}"] = searcher.suggest(f"t{number}")
        if len(open_trials) == 2:
            name, config = next(iter(open_trials.items()))
            del open_trials[name]
            if config["number"] % 5 == 3:
                searcher.on_trial_complete(name, error=True)
            else:
                finish(searcher, name, config, epoch=1 if config["number"] % 5 == 4 else EPOCHS)
    for name, config in open_trials.items():
        finish(searcher, name, config)
    assert searcher.suggest("one more") == Searcher.FINISHED
    assert states(searcher) == {TrialState.COMPLETE: 12, TrialState.FAIL: 3, TrialState.PRUNED: 3}
    for trial in searcher.study.get_trials(states=[TrialState.COMPLETE]):
        assert set(trial.constraints) == {"macs", "accuracy"}


def test_proposals_carry_number_policy_and_params(start):
    searcher = start()
    configs = [searcher.suggest(f"t{number}") for number in range(3)]
    assert [config["number"] for config in configs] == [0, 1, 2]
    for config in configs:
        policy = Policy.from_json(config["policy"])
        assert policy.criterion.name == config["params"]["criterion"]
        assert ("width" in config["params"]) == (config["params"]["allocation"] == "searched")


def test_values_are_told_in_the_order_of_the_objectives(start):
    searcher = start(experiment(objectives=["params", "accuracy", "macs"]))
    config = searcher.suggest("t0")
    finish(searcher, "t0", config)
    expected = measured(config)
    trial = searcher.study.get_trials()[0]
    assert trial.values == [expected["params"], expected["accuracy"], expected["macs"]]
    assert [direction.name for direction in searcher.study.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]
    assert searcher.study.metric_names == ["params", "accuracy", "macs"]


def test_what_lies_beyond_a_limit_is_infeasible_and_what_touches_it_is_not(start):
    limits = {"macs": "63%", "accuracy": "50%", "params": 250}
    searcher = start(experiment(constraints=limits))
    cases = [
        ({}, True),
        ({"macs": 0.63 * 1000}, True),
        ({"macs": 631}, False),
        ({"accuracy": 0.45}, True),
        ({"accuracy": 0.449}, False),
        ({"params": 250}, True),
        ({"params": 251}, False),
    ]
    for number, (changes, _) in enumerate(cases):
        config = searcher.suggest(f"t{number}")
        finish(searcher, f"t{number}", config, **{"accuracy": 0.8, "macs": 500, "params": 200, **changes})
    assert [record.feasible for record in searcher.records()] == [feasible for _, feasible in cases]
    assert searcher.study.get_trials()[2].constraints["macs"] == pytest.approx((631 - 630) / 630)
    assert searcher.study.get_trials()[4].constraints["accuracy"] == pytest.approx((0.45 - 0.449) / 0.45)
    best = {trial.number for trial in searcher.study.best_trials}
    assert best <= {number for number, (_, feasible) in enumerate(cases) if feasible}


def test_a_trial_that_ends_before_its_last_epoch_was_stopped_early(start):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.on_trial_result("t0", measured(config, 0))
    # Tune marks the last result as done whoever ended the trial, and does not pass it to `on_trial_result`
    searcher.on_trial_complete("t0", measured(config, 1, done=True))
    (record,) = searcher.records()
    assert record.state is State.STOPPED
    assert [metrics.epoch for metrics in record.history] == [0, 1]
    assert not record.counts


def test_a_trial_stopped_from_outside_keeps_what_it_measured(start):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.on_trial_result("t0", measured(config, 0))
    searcher.on_trial_complete("t0")
    searcher.suggest("t1")
    searcher.on_trial_complete("t1")
    stopped, nothing = searcher.records()
    assert (stopped.state, len(stopped.history)) == (State.STOPPED, 1)
    assert (nothing.state, nothing.error) == (State.FAILED, "stopped before it measured anything")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"accuracy": math.nan}, "accuracy: expected a finite number, got nan"),
        ({"macs": math.inf}, "macs: expected a finite number, got inf"),
        ({"accuracy": None}, "accuracy: expected a finite number, got nothing"),
        ({"latency_ms": None}, "latency_ms: expected a finite number, got nothing"),
        ({"loss": "low"}, "loss: expected a finite number, got low"),
        ({"error": "SurgeryError: no channel left"}, "SurgeryError: no channel left"),
    ],
)
def test_a_result_that_is_no_measurement_fails_the_trial(start, changes, error):
    searcher = start(experiment(constraints={"latency_ms": 5}))
    config = searcher.suggest("t0")
    finish(searcher, "t0", config, **{"latency_ms": 1.0, **changes})
    (record,) = searcher.records()
    assert (record.state, record.error) == (State.FAILED, error)
    assert states(searcher) == {TrialState.FAIL: 1}


def test_a_nan_on_the_way_is_left_out_of_the_history(start):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.on_trial_result("t0", measured(config, 0, loss=math.nan))
    searcher.on_trial_complete("t0", measured(config))
    (record,) = searcher.records()
    assert record.state is State.FINISHED
    assert [metrics.epoch for metrics in record.history] == [EPOCHS]


def test_numpy_numbers_are_measurements(start):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.on_trial_complete("t0", measured(config, accuracy=np.float32(0.5), macs=np.int64(600)))
    (record,) = searcher.records()
    assert (record.metrics.accuracy, record.metrics.macs) == (0.5, 600)


def test_the_first_ending_counts(start):
    searcher = start()
    config = searcher.suggest("t0")
    finish(searcher, "t0", config)
    before = searcher.study.get_trials()
    searcher.on_trial_complete("t0", measured(config, accuracy=0.1))
    searcher.on_trial_complete("t0", error=True)
    searcher.on_trial_result("t0", measured(config, accuracy=0.1))
    searcher.on_trial_complete("never proposed", error=True)
    assert searcher.study.get_trials() == before


def test_a_failure_can_be_explained_before_and_after_it_is_told(start):
    searcher = start()
    for name in ("t0", "t1", "t2", "t3"):
        searcher.suggest(name)
    searcher.explain_failure("t0", ValueError("no such file\nsecond line"))
    for name in ("t0", "t1", "t2", "t3"):
        searcher.on_trial_complete(name, error=True)
    searcher.explain_failure("t1", "Traceback (most recent call last):\n  File ...\nKeyError: 'weights'\n")
    searcher.explain_failure("t2", KeyboardInterrupt())
    assert [record.error for record in searcher.records()] == [
        "ValueError: no such file",
        "KeyError: 'weights'",
        "KeyboardInterrupt",
        "raised an exception, or its worker died",
    ]


def test_a_trial_that_succeeds_after_a_failed_attempt_has_no_error(start):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.explain_failure("t0", "its worker died")
    finish(searcher, "t0", config)
    assert [(record.state, record.error) for record in searcher.records()] == [(State.FINISHED, None)]


def test_a_proposer_that_raises_leaves_no_trial_running(start):
    class Broken(OneBranch):
        def suggest(self, trial):
            super().suggest(trial)
            raise RuntimeError("no such budget")

    searcher = start(proposer=Broken())
    with pytest.raises(RuntimeError, match="no such budget"):
        searcher.suggest("t0")
    assert states(searcher) == {TrialState.FAIL: 1}
    assert searcher.records() == []


@pytest.mark.parametrize(("sampler", "warned"), [("random", 0), ("tpe", 0), ("nsga2", 1), ("gp", 1)])
def test_samplers_that_ignore_conditional_dimensions_say_so_once(tmp_path, sampler, warned):
    asked = experiment(search={"sampler": sampler})
    create_study(tmp_path, asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(StudySearcher(tmp_path, asked, TwoBranches(), BASELINE), 3)
        run(StudySearcher(tmp_path, asked, OneBranch(), BASELINE), 3, first=3)
    assert [str(warning.message) for warning in caught] == warned * [
        f"search.sampler: {sampler} draws at random what exists only for some choices; tpe learns it"
    ]


@pytest.mark.parametrize(
    ("search", "note"),
    [
        ({"sampler": "nsga2", "trials": 8}, "nsga2 draws its first 8 trials at random, and there are 8 in all"),
        ({"sampler": "nsga3", "trials": 5}, "nsga3 draws its first 8 trials at random, and there are 5 in all"),
        ({"sampler": "gp", "trials": 500}, "gp takes seconds for a proposal after some 200 trials, and there are 500"),
        ({"sampler": "nsga2", "trials": 9}, None),
        ({"sampler": "gp", "trials": 200}, None),
        ({"sampler": "tpe", "trials": 1}, None),
    ],
)
def test_a_sampler_that_does_not_fit_the_number_of_trials_is_noted(tmp_path, search, note):
    asked = experiment(search=search)
    create_study(tmp_path, asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        StudySearcher(tmp_path, asked, OneBranch(), BASELINE)
    assert [str(warning.message).split(";")[0] for warning in caught] == ([f"search.sampler: {note}"] if note else [])


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_journal_alone_rebuilds_the_records(start, tmp_path):
    searcher = start()
    configs = [searcher.suggest(f"t{number}") for number in range(2)]
    finish(searcher, "t0", configs[0])
    searcher.on_trial_result("t1", measured(configs[1], 0))
    finished, running = load_records(tmp_path, experiment())
    assert (finished.state, running.state) == (State.FINISHED, State.RUNNING)
    assert finished.policy == Policy.from_json(configs[0]["policy"])
    assert finished.params == configs[0]["params"]
    assert [metrics.to_dict() for metrics in finished.history] == [
        {name: value for name, value in measured(configs[0], epoch).items() if name in Metrics.__slots__}
        for epoch in range(EPOCHS + 1)
    ]
    assert finished.seconds == 1.0 + EPOCHS
    assert finished.counts
    assert finished.error is None
    assert finished.extra == {"tune_id": "t0"}
    assert finished.started <= finished.ended <= time.time()
    assert running.ended is None
    assert running.started >= finished.started
    assert len(running.history) == 1


def test_an_attempt_that_starts_over_replaces_what_the_first_one_measured(start):
    searcher = start()
    config = searcher.suggest("t0")
    for epoch in (0, 1):
        searcher.on_trial_result("t0", measured(config, epoch))
    searcher.on_trial_result("t0", measured(config, 0, seconds=9.0))
    (record,) = searcher.records()
    assert [(metrics.epoch, metrics.seconds) for metrics in record.history] == [(0, 9.0)]


def test_a_trial_that_goes_on_fills_what_a_lost_driver_had_heard(start):
    searcher = start()
    searcher.suggest("a")
    whole = [Metrics(epoch, 0.1 * epoch, 1.0, macs=10, params=10).to_dict() for epoch in range(EPOCHS + 1)]
    searcher.on_trial_result("a", whole[0])
    searcher.on_trial_result("a", whole[-2] | {MEASURED: whole[:-1]})
    assert [metrics.epoch for metrics in searcher.record(0).history] == list(range(EPOCHS))
    searcher.on_trial_result("a", whole[0] | {MEASURED: [whole[0] | {"accuracy": 0.9}]})  # another attempt
    searcher.on_trial_result("a", whole[1] | {MEASURED: whole[:2]})
    assert [metrics.accuracy for metrics in searcher.record(0).history] == [0.0, 0.1]


def test_a_study_is_made_once_and_must_fit_the_objectives(tmp_path):
    with pytest.raises(SweepError, match=r"expected study\.journal, found none"):
        open_study(tmp_path, experiment())
    create_study(tmp_path, experiment())
    with pytest.raises(SweepError, match=r"holds a study\.journal already; resume it"):
        create_study(tmp_path, experiment())
    with pytest.raises(SweepError, match=r"objectives: expected accuracy, macs as in .*, got accuracy, params"):
        open_study(tmp_path, experiment(objectives=["accuracy", "params"]))
    (tmp_path / "study.journal").write_bytes(b"")
    with pytest.raises(SweepError, match="is empty"):
        open_study(tmp_path, experiment())


def test_a_limit_relative_to_what_the_baseline_lacks_is_refused(start):
    with pytest.raises(SweepError, match=r"constraints\.latency_ms: 50% of the baseline's, but the baseline has no"):
        start(experiment(constraints={"latency_ms": "50%"}))


def test_optuna_neither_talks_nor_keeps_another_verbosity(start):
    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    said, listener, verbosity = [], Listener(), optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(listener)
    try:
        run(start(experiment(search={"sampler": "tpe"})), 2)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        logging.getLogger("optuna").removeHandler(listener)
        optuna.logging.set_verbosity(verbosity)
    assert said == []


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_a_sweep_resumed_in_the_middle_proposes_what_an_uninterrupted_one_does(tmp_path, sampler):
    asked = experiment(search={"sampler": sampler, "trials": 24})
    proposals = []
    for folder in (tmp_path / "whole", tmp_path / "halves"):
        create_study(folder, asked)
        searcher = StudySearcher(folder, asked, OneBranch(), BASELINE)
        run(searcher, 13)
        if folder.name == "halves":
            searcher = pickle.loads(pickle.dumps(searcher))
        run(searcher, 11, first=13)
        assert searcher.suggest("one more") == Searcher.FINISHED
        proposals.append([record.params for record in searcher.records()])
    assert proposals[0] == proposals[1]
    assert len({str(params) for params in proposals[0]}) > 12  # not the first ones over and over


def test_trials_that_tune_resumes_keep_their_number_and_history(start, tmp_path):
    searcher = start()
    config = searcher.suggest("t0")
    searcher.on_trial_result("t0", measured(config, 0))
    searcher.save(str(tmp_path / "state"))
    restored = pickle.loads(pickle.dumps(start()))
    restored.restore(str(tmp_path / "state"))
    assert restored.suggest("t1")["number"] == 1
    restored.on_trial_result("t0", measured(config, 1))
    restored.on_trial_complete("t0", measured(config))
    record = restored.records()[0]
    assert record.state is State.FINISHED
    assert [metrics.epoch for metrics in record.history] == [0, 1, 2]


def test_trials_that_tune_forgot_are_proposed_again_once_and_first(start, tmp_path):
    searcher = start(experiment(search={"trials": 5}))
    run(searcher, 1)
    kept = searcher.suggest("kept")
    searcher.save(str(tmp_path / "state"))
    lost = [searcher.suggest("lost a"), searcher.suggest("lost b")]
    searcher.on_trial_result("lost a", measured(lost[0], 0))
    searcher.on_trial_result("lost a", measured(lost[0], 1))
    # the driver is killed here
    restored = start(experiment(search={"trials": 5}))
    restored.restore(str(tmp_path / "state"))
    again = [restored.suggest("new a"), restored.suggest("new b")]
    assert again == lost
    restored.on_trial_result("new a", measured(again[0], 1))  # it went on from a snapshot of epoch 0
    assert [metrics.epoch for metrics in restored.records()[2].history] == [0, 1]
    restored.on_trial_complete("lost a", error=True)  # an echo of the first attempt ends nothing
    last = restored.suggest("last")
    assert last["number"] == 4
    assert restored.suggest("one more") == Searcher.FINISHED
    for name, config in {"kept": kept, "new a": again[0], "new b": again[1], "last": last}.items():
        finish(restored, name, config)
    assert states(restored) == {TrialState.COMPLETE: 5}
    assert [record.number for record in restored.records()] == [0, 1, 2, 3, 4]


def test_a_pickled_searcher_carries_no_study_and_proposes_again_what_was_proposed(start):
    searcher = start()
    config = searcher.suggest("t0")
    pickled = pickle.dumps(searcher)
    assert b"optuna" not in pickled

    class Changed(TwoBranches):
        def suggest(self, trial):
            return super().suggest(trial).model_copy(update={"seed": 99})

    assert start(proposer=Changed()).suggest("t1") == config
    assert pickle.loads(pickled).suggest("t2")["number"] == 1


def test_a_proposal_cut_off_before_its_policy_is_completed_under_its_number(start):
    class CutOff(OneBranch):
        def suggest(self, trial):
            trial.suggest_categorical("criterion", ["l1", "fpgm"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(proposer=CutOff()).suggest("t0")
    searcher = start()
    assert searcher.records() == []
    drawn = searcher.study.get_trials()[0].params
    config = searcher.suggest("t1")
    assert config["number"] == 0
    assert config["params"].items() >= drawn.items()


def test_trials_of_an_earlier_run_count(start):
    run(start(experiment(search={"trials": 4})), 4)
    assert start(experiment(search={"trials": 4})).suggest("t4") == Searcher.FINISHED
    longer = start(experiment(search={"trials": 6}))
    run(longer, 2, first=4)
    assert longer.suggest("t6") == Searcher.FINISHED
    assert [record.number for record in longer.records()] == list(range(6))


def test_a_lost_proposal_still_becomes_a_parent_for_nsga2(start):
    asked = experiment(search={"sampler": "nsga2", "trials": 24})
    searcher = start(asked, OneBranch())
    run(searcher, 7)
    searcher.suggest("lost")
    again = start(asked, OneBranch())
    run(again, 2, first=7)
    generations = [
        next(value for name, value in trial.system_attrs.items() if "generation" in name)
        for trial in again.study.get_trials()
    ]
    assert generations == 8 * [0] + [1]


def test_a_torn_last_line_costs_only_itself(start, tmp_path):
    run(start(), 2)
    journal = tmp_path / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"full di')
    assert len(load_records(tmp_path, experiment())) == 2
    run(start(), 1, first=2)
    assert len(load_records(tmp_path, experiment())) == 3


# ── under Tune ───────────────────────────────────────────────────────────────────────────────────────────────────────


def train(config):
    """Trial 2 raises, trial 3 reports NaN, trial 4 nothing, trial 5 an error; the others finish. Needs no torch."""
    number = config["number"]
    if number == 4:
        return
    if number == 5:
        tune.report({"error": "SurgeryError: no channel left"})
        return
    for epoch in range(EPOCHS + 1):
        accuracy = math.nan if number == 3 else 0.5 + epoch / 10
        macs, params = 100 * (number + 1), 50 * (number + 1)
        tune.report({"epoch": epoch, "accuracy": accuracy, "loss": 1.0, "macs": macs, "params": params, "seconds": 1.0})
        if number == 2:
            raise ValueError("out of channels\nsecond line")


class Explain(tune.Callback):
    def __init__(self, searcher):
        self.searcher = searcher

    def on_trial_error(self, iteration, trials, trial, **info):
        self.searcher.explain_failure(trial.trial_id, Path(trial.error_file).read_text())


@pytest.fixture
def local_ray():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_sweep_under_tune_survives_every_kind_of_failure(start, tmp_path, local_ray):
    asked = experiment(search={"sampler": "nsga2", "trials": 8}, constraints={"macs": "60%"})
    searcher = start(asked)
    tuner = tune.Tuner(
        train,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=8, max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="tune", verbose=0, callbacks=[Explain(searcher)]),
    )
    tuner.fit()
    records = load_records(tmp_path, asked)
    assert [record.number for record in records] == list(range(8))
    assert {record.number: record.error for record in records if record.state is State.FAILED} == {
        2: "ValueError: out of channels",
        3: "accuracy: expected a finite number, got nan",
        4: "accuracy: expected a finite number, got nothing",
        5: "SurgeryError: no channel left",
    }
    finished = {record.number: record for record in records if record.state is State.FINISHED}
    assert {number: record.feasible for number, record in finished.items()} == {0: True, 1: True, 6: False, 7: False}
    for record in finished.values():
        assert [metrics.epoch for metrics in record.history] == [0, 1, 2]
    assert records == searcher.records()
