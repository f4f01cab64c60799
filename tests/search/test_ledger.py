"""What a driver does for one more trial does not depend on how many there were."""

import io
import os
import pickle
import shutil
from collections import Counter

import pytest
from optuna.storages import JournalStorage
from optuna.trial import FixedTrial
from proposals import BASELINE, Driver, Widths, experiment
from rich.console import Console

from search import searcher as module
from search.journal import Journal
from search.pareto import front
from search.progress import LiveView
from search.results import State
from search.searcher import StudySearcher
from search.study import create_study, records
from search.tracking import Tracker
from search.watcher import Watcher


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def start(tmp_path):
    def searcher(trials=40, sampler="random", groups=3, **sections):
        asked = experiment(tmp_path, trials, sampler, **sections)
        if not asked.folder.exists():
            create_study(asked.folder, asked)
        return StudySearcher(asked.folder, asked, Widths(groups), BASELINE)

    return searcher


# ── the truth ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_at_every_event_the_ledger_says_what_the_whole_study_does(start, seed):
    searcher = start(constraints={"macs": "60%"})
    driver = Driver(searcher, seed=seed)
    for number in range(40):
        driver.run(1, first=number)
        expected = records(searcher.study)
        assert searcher.records() == expected
        assert [searcher.record(item.number) for item in expected] == expected
        assert searcher.running == sum(item.state is State.RUNNING for item in expected)
        assert len(searcher.ledger) == len(searcher.study.get_trials(deepcopy=False))
    driver.finish()
    ended = Counter(item.state for item in searcher.records())
    assert ended == {State.FINISHED: 32, State.STOPPED: 5, State.FAILED: 3}
    assert searcher.ledger.unfinished == []


def test_a_ledger_made_later_says_the_same_and_goes_on(start):
    searcher = start()
    Driver(searcher).run(20)  # some are under way
    again = pickle.loads(pickle.dumps(searcher))
    assert again.records() == searcher.records()
    Driver(again).run(5, first=20)
    assert again.records() == records(start().study)


def test_a_failure_that_is_explained_later_is_in_the_record(start):
    searcher = start()
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", error=True)
    assert "worker died" in searcher.record(0).error
    searcher.explain_failure("t0", ValueError("no channel"))
    assert searcher.record(0).error == "ValueError: no channel"


def test_a_proposal_without_a_policy_has_no_record_yet(start):
    class CutOff(Widths):
        def suggest(self, trial):
            trial.suggest_int("width.layer0", 1, 16)
            raise KeyboardInterrupt

    searcher = start()
    searcher._proposer = CutOff()
    with pytest.raises(KeyboardInterrupt):
        searcher.suggest("t0")
    assert (searcher.records(), searcher.running, len(searcher.ledger)) == ([], 0, 1)
    with pytest.raises(KeyError):
        searcher.record(0)


@pytest.mark.parametrize("most", [8, 16, 1000])
def test_seen_are_the_front_the_newest_those_under_way_and_a_part_of_the_history(start, most):
    searcher = start(trials=100)
    driver = Driver(searcher)
    for number in range(60):
        driver.run(1, first=number)
        trials = searcher.study.get_trials(deepcopy=False)
        best = {item.number for item in front(searcher.records(), ("accuracy", "macs"))}
        under_way = {*[trial.number for trial in trials if not trial.state.is_finished()][-most // 2 :]}
        newest = {trial.number for trial in trials[-most // 8 :]}
        step = next(step for step in (1, 2, 4, 8) if len(trials) <= most * step)
        spread = {trial.number for trial in trials if trial.number % step == 0}
        seen = searcher.ledger.seen(most)
        assert [trial.number for trial in seen] == sorted(best | under_way | newest | spread)
        assert seen == [trials[trial.number] for trial in seen]


def test_of_a_thousand_that_run_the_latest_are_seen(start):
    searcher = start(trials=200)
    running = [searcher.suggest(str(number))["number"] for number in range(100)]
    spread = set(range(0, len(searcher.ledger), 16))  # at most 8: every sixteenth
    assert [trial.number for trial in searcher.ledger.seen(8)] == sorted(spread.union(running[-4:]))


def test_shapes_are_the_first_trials_that_ended_with_their_dimensions(start):
    class Either(Widths):
        def suggest(self, trial):
            names = self.names if trial.suggest_categorical("all", [True, False]) else self.names[:1]
            widths = {name: trial.suggest_int(f"width.{name}", 1, 16) for name in names}
            return super().suggest(FixedTrial({f"width.{n}": widths.get(n, 16) for n in self.names}))

    searcher = start()
    searcher._proposer = Either(3)
    driver = Driver(searcher)
    for number in range(40):
        driver.run(1, first=number)
        first = {}
        for trial in searcher.study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                first.setdefault((trial.state, frozenset(trial.params)), trial)
        assert searcher.ledger.shapes() == list(first.values())
    assert len(first) > 3


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sweep_of_any_dimensions_is_proposed_as_optunas_own_sampler_would(start, monkeypatch, sampler):
    def params():
        return [record.params for record in found.records()]

    def plain(self, number):
        return module.make_sampler(self._experiment, number)

    found = start(30, sampler)
    Driver(found).run(30)
    bounded = params()
    shutil.rmtree(found._folder)
    monkeypatch.setattr(StudySearcher, "_sampler", plain)
    found = start(30, sampler)
    Driver(found).run(30)
    assert bounded == params()


# ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Work(Counter):
    """How often the driver does what costs: records made, all trials asked for, bytes read and pieces written."""

    def watch(self, monkeypatch):
        make, every, read, write = module.record_of, JournalStorage.get_all_trials, Journal._on_disk, os.write

        def made(*args):
            self["records"] += 1
            return make(*args)

        def asked(*args):
            self["all trials"] += 1
            return every(*args)

        def from_disk(journal):
            for log in read(journal):
                self["lines read"] += 1
                yield log

        def written(file, data):
            self["writes"] += 1
            return write(file, data)

        monkeypatch.setattr(module, "record_of", made)
        monkeypatch.setattr(JournalStorage, "get_all_trials", asked)
        monkeypatch.setattr(Journal, "_on_disk", from_disk)
        monkeypatch.setattr(os, "write", written)
        return self


@pytest.mark.parametrize(("sampler", "trials"), [("random", 600), ("tpe", 90)])
def test_the_last_of_many_trials_costs_the_driver_what_the_first_did(start, monkeypatch, sampler, trials):
    work = Work().watch(monkeypatch)
    searcher = start(trials, sampler, groups=5)
    asked = searcher._experiment
    with LiveView(trials, BASELINE, asked.objectives, console=Console(file=io.StringIO())) as view:
        driver = Driver(searcher, Watcher(searcher, Tracker(asked.folder, asked), view))
        each = []
        for number in range(trials):
            before = work.copy()
            driver.run(1, first=number)
            each.append(work - before)
    part = trials // 6
    for what in ("records", "writes"):
        first, last = (sum(one[what] for one in some) / part for some in (each[part : 2 * part], each[-part:]))
        assert 3 < last < first + 1 < 7  # a proposal, two reports in the mean, an end
    assert sum(one["all trials"] + one["lines read"] for one in each[1:]) == 0
    assert len(searcher.records()) == trials


def test_the_sampler_is_shown_no_more_trials_after_many(start, monkeypatch):
    monkeypatch.setattr(module, "SEEN", 16)
    searcher = start(90, "tpe", groups=2)
    shown, seen = [], searcher.ledger.seen

    def counted(most):
        found = seen(most)
        shown.append(len(found) - len(searcher.ledger._front))
        return found

    searcher.ledger.seen = counted
    Driver(searcher).run(90)
    assert len(searcher.records()) == 90
    assert 8 <= max(shown) <= 16 + 2 + 8  # of the history, the newest, those under way
