"""Policies that others than the sampler propose, and policies that were proposed before."""

from collections import Counter
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from ray.tune.search.searcher import Searcher
from test_study import BASELINE, EPOCHS, TwoBranches, experiment, finish, measured

from pruning import Policy
from search.results import State
from search.searcher import StudySearcher
from search.study import Proposal, create_study, enqueue, load_records, open_study


class Few(TwoBranches):
    """A space of four policies."""

    conditional = False

    def suggest(self, trial, widths=None):
        width = trial.suggest_int("width", 1, 4)
        return made(width if widths is None else widths["conv1"])


class Many(Few):
    def suggest(self, trial, widths=None):
        width = trial.suggest_int("width", 1, 1000)
        return made(width if widths is None else widths["conv1"])


def made(width):
    policy = TwoBranches().suggest(_Fixed(width))
    return policy.model_copy(update={"seed": 0})


class _Fixed:
    number = 0

    def __init__(self, width):
        self.width = width

    def suggest_categorical(self, name, choices):
        return choices[0]

    def suggest_int(self, name, low, high):
        return self.width


@pytest.fixture
def searcher(tmp_path):
    def make(proposer, guide=None, starts=(), **search):
        asked = experiment(search={"trials": 12, "sampler": "random", **search})
        if not (tmp_path / "study.journal").exists():
            study = create_study(tmp_path, asked)
            for start in starts:
                enqueue(study, start)
        return StudySearcher(tmp_path, asked, proposer, BASELINE, guide)

    make.folder = tmp_path
    return make


def start(width, answer=None):
    return Proposal(f"start {width}", {"width": answer or width}, {"conv1": width})


def run(found, trials=100, first=0):
    configs = []
    for number in range(first, first + trials):
        config = found.suggest(f"t{number}")
        if config == Searcher.FINISHED:
            break
        finish(found, f"t{number}", config)
        configs.append(config)
    return configs


def widths_of(configs):
    return [Policy.from_json(config["policy"]).widths["conv1"] for config in configs]


@pytest.mark.parametrize("sampler", ["random", "nsga2", "nsga3", "tpe", "gp"])
def test_starts_come_first_with_their_own_widths_and_count_as_trials(searcher, sampler):
    starts = [start(7), start(30, answer=31), start(2)]
    found = searcher(Many(), starts=starts, sampler=sampler)
    configs = run(found)
    assert widths_of(configs)[:3] == [7, 30, 2]
    assert [config["params"]["width"] for config in configs[:3]] == [7, 31, 2]
    assert len(configs) == 12
    records = found.records()
    assert [record.extra.get("source") for record in records[:4]] == ["start 7", "start 30", "start 2", None]
    assert all(record.state is State.FINISHED for record in records)


def test_what_a_proposal_predicts_is_kept_with_its_trial_and_read_again(searcher):
    guess = {"accuracy": 0.87654, "deviation": 0.01, "trained": True}
    found = searcher(Many(), starts=[start(7), replace(start(8), predicted=guess)])
    run(found, 3)
    for records in (found.records(), load_records(searcher.folder, experiment())):
        assert [record.extra.get("predicted") for record in records] == [None, guess, None]


def test_starts_of_an_interrupted_sweep_are_not_lost_or_repeated(searcher):
    starts = [start(width) for width in (5, 6, 7, 8)]
    first = searcher(Many(), starts=starts)
    done = run(first, 2)
    again = searcher(Many())
    assert widths_of(done + run(again, 100, first=2))[:4] == [5, 6, 7, 8]
    assert len(load_records(searcher.folder, experiment())) == 12


def test_a_start_may_leave_answers_to_the_sampler(searcher):
    found = searcher(TwoBranches(), starts=[])
    enqueue(found.study, Proposal("half", {"criterion": "fpgm", "allocation": "searched"}, {"conv1": 8}))

    class Given(TwoBranches):
        def suggest(self, trial, widths=None):
            policy = super().suggest(trial)
            return policy if widths is None else policy.model_copy(update={"widths": widths})

    found._proposer = Given()
    (config,) = run(found, 1)
    policy = Policy.from_json(config["policy"])
    assert (policy.criterion.name, policy.widths) == ("fpgm", {"conv1": 8})
    assert "width" in config["params"]


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_every_policy_is_run_once_and_a_small_space_ends_the_sweep(searcher, sampler):
    found = searcher(Few(), sampler=sampler)
    configs = run(found)
    assert sorted(widths_of(configs)) == [1, 2, 3, 4]
    assert found.exhausted
    assert len(found.records()) == 4


def test_a_repeated_policy_is_told_as_what_the_first_one_measured(searcher):
    found = searcher(Few())
    run(found)
    trials = found.study.get_trials()
    first = {}
    repeated = 0
    for trial in trials:
        if "same_as" not in trial.user_attrs:
            first[trial.number] = trial
            continue
        twin = first[trial.user_attrs["same_as"]]
        repeated += 1
        assert trial.params == twin.params
        assert trial.state is TrialState.COMPLETE
        assert trial.values == twin.values
    assert repeated > 10
    assert not [trial for trial in trials if trial.state is TrialState.RUNNING]


def test_a_policy_that_runs_or_failed_is_not_run_again_either(searcher):
    found = searcher(Few())
    configs = {name: found.suggest(name) for name in ("a", "b", "c", "d")}
    assert sorted(widths_of(configs.values())) == [1, 2, 3, 4]
    assert found.suggest("e") == Searcher.FINISHED
    found.on_trial_complete("a", error=True)
    for name in ("b", "c", "d"):
        finish(found, name, configs[name])
    assert found.suggest("f") == Searcher.FINISHED
    states = Counter(record.state for record in found.records())
    assert states == {State.FINISHED: 3, State.FAILED: 1}
    assert not [trial for trial in found.study.get_trials() if trial.state is TrialState.RUNNING]


def test_a_resumed_sweep_knows_the_policies_of_before(searcher):
    configs = run(searcher(Few()), 3)
    more = run(searcher(Few()), 100, first=3)
    assert sorted(widths_of(configs + more)) == [1, 2, 3, 4]


class Every(int):
    """Proposes every third trial: 100 times its number."""

    def proposal(self, number, records):
        self_seen.append((number, [record.number for record in records() if record.history]))
        return None if number % 3 else Proposal("guide", {"width": 100 * (1 + number)}, {"conv1": 100 * (1 + number)})


self_seen = []


def test_a_guide_takes_its_turns_and_sees_what_was_measured(searcher):
    self_seen.clear()
    found = searcher(Many(), guide=Every(), starts=[start(3)])
    configs = run(found)
    assert widths_of(configs)[0] == 3
    assert [widths_of(configs)[number] for number in (3, 6, 9)] == [400, 700, 1000]
    assert [record.extra.get("source") for record in found.records()].count("guide") == 3
    numbers = [number for number, _ in self_seen]
    assert numbers[0] == 1  # while a start waits, nobody else is asked
    assert all(seen == list(range(number)) for number, seen in self_seen)


def test_nobody_collects_the_trials_for_a_guide_that_does_not_ask_for_them(searcher, monkeypatch):
    class Silent(Every):
        def proposal(self, number, records):
            return None

    found = searcher(Many(), guide=Silent())
    monkeypatch.setattr(type(found), "records", lambda self: pytest.fail("every trial was collected"))
    assert found.suggest("t0")["number"] == 0


def test_a_guided_sweep_that_is_interrupted_goes_on_as_if_it_had_not_been(searcher, tmp_path_factory):
    whole = widths_of(run(searcher(Many(), guide=Every())))
    searcher.folder.joinpath("study.journal").unlink()
    first = run(searcher(Many(), guide=Every()), 5)
    second = run(searcher(Many(), guide=Every()), 100, first=5)
    assert widths_of(first + second) == whole


def test_measurements_of_a_start_steer_nsga2(searcher):
    starts = [start(width) for width in (300, 400, 500, 600, 700, 800, 900, 1000)]
    found = searcher(Many(), starts=starts, sampler="nsga2", trials=16)
    run(found)
    study = open_study(searcher.folder, experiment())
    generations = [
        next((value for name, value in trial.system_attrs.items() if name.endswith(":generation")), None)
        for trial in study.get_trials()
    ]
    assert generations[:8] == [0] * 8
    assert generations[8:] == [1] * 8


def test_the_epochs_are_those_that_the_study_tests_report():
    assert measured({"policy": made(3).model_dump_json()})["epoch"] == EPOCHS
