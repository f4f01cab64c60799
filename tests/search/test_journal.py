import itertools
import os
import random
from contextlib import suppress

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search import journal as module
from search.errors import SweepError
from search.journal import Journal, Storage

STATES = [TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.journal"


@pytest.fixture
def written(monkeypatch):
    """What goes to the disk, one entry for each wait."""
    pieces, pending, write = [], [], os.write

    def noted(file, data):
        pending.append(bytes(data))
        return write(file, data)

    def waited(file):
        pieces.append(b"".join(pending))
        pending.clear()

    monkeypatch.setattr(os, "write", noted)
    monkeypatch.setattr(os, "fsync", waited)
    return pieces


def study_of(journal):
    storage = Storage(journal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage.get_all_studies():
        return optuna.load_study(study_name=None, storage=storage)
    return optuna.create_study(storage=storage, directions=["maximize", "minimize"])


def by_optuna(path):
    """The trials as Optuna's own backend reads them."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return storage.get_all_trials(storage.get_all_studies()[0]._study_id)


def act(study, dice):
    """Do something that a study allows."""
    running = [trial.number for trial in study.get_trials(states=[TrialState.RUNNING])]
    match dice.randrange(6):
        case 0 | 1:
            trial = study.ask()
            trial.suggest_int("width", 1, 9)
            trial.set_user_attr("policy", "{}")
        case 2:
            study.enqueue_trial({"width": dice.randint(1, 9)}, user_attrs={"from": [1, "two"]})
        case 3:
            study.set_user_attr(f"error:{dice.randrange(9)}", "it fell")
        case 4 if running:
            study.tell(dice.choice(running), [dice.random(), 1])
        case 5 if running:
            study.tell(dice.choice(running), state=dice.choice([TrialState.PRUNED, TrialState.FAIL]))


# ── the same study ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_a_study_reads_the_same_with_optunas_own_backend_and_after_opening_again(path, seed):
    journal = Journal(path)
    study, dice = study_of(journal), random.Random(seed)
    for _ in range(40):
        with journal.at_once():
            for _ in range(dice.randrange(4)):
                act(study, dice)
        assert study.get_trials() == by_optuna(path)
    assert study_of(Journal(path)).get_trials() == study.get_trials()
    assert study_of(Journal(path)).user_attrs == study.user_attrs


@pytest.mark.parametrize("seed", range(3))
def test_trials_of_any_states_are_those_that_optunas_storage_finds(path, seed):
    study, dice = study_of(Journal(path)), random.Random(seed)
    storage = study._storage
    for _ in range(25):
        act(study, dice)
        for count in range(len(STATES) + 1):
            for states in itertools.combinations(STATES, count):
                expected = JournalStorage.get_all_trials(storage, study._study_id, states=states)
                assert storage.get_all_trials(study._study_id, states=states) == expected
    found = storage.get_all_trials(study._study_id, states=[TrialState.WAITING])
    found.append("mine")
    assert "mine" not in storage.get_all_trials(study._study_id, states=[TrialState.WAITING])


def test_the_journal_is_looked_at_once_for_what_waits_however_many_run(path, monkeypatch):
    study = study_of(Journal(path))
    for _ in range(20):
        study.ask()
    looked, plain = [], Journal.read_logs
    monkeypatch.setattr(Journal, "read_logs", lambda journal, first: looked.append(first) or plain(journal, first))
    assert len(study._storage.get_all_trials(study._study_id, states=[TrialState.RUNNING])) == 20
    assert len(looked) == 1


def test_lines_of_another_driver_are_read_before_the_next_line(path):
    study = study_of(Journal(path))
    other = study_of(Journal(path))
    assert [other.ask().number, study.ask().number, other.ask().number] == [0, 1, 2]
    assert study.get_trials() == other.get_trials() == by_optuna(path)


# ── at once ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_at_once_is_seen_at_once_and_reaches_the_disk_in_one_piece(path, written):
    journal = Journal(path)
    study = study_of(journal)
    before = len(written)
    with journal.at_once():
        with journal.at_once():
            trial = study.ask()
            for number in range(20):
                trial.suggest_int(f"width{number}", 1, 9)
        study.tell(trial, [1.0, 2.0])
        assert study.get_trials()[0].values == [1.0, 2.0]
        assert by_optuna(path) == []
    assert len(written) == before + 1
    assert written[-1].count(b"\n") == 22
    assert by_optuna(path) == study.get_trials()


def test_a_block_that_is_left_by_an_error_writes_what_it_said(path):
    journal = Journal(path)
    study = study_of(journal)
    with suppress(KeyboardInterrupt), journal.at_once():
        study.ask()
        raise KeyboardInterrupt
    assert len(by_optuna(path)) == 1


def test_two_drivers_at_the_same_time_are_told(path):
    journal = Journal(path)
    study = study_of(journal)
    held = journal.at_once()
    held.__enter__()
    study.ask()
    study_of(Journal(path)).ask()
    with pytest.raises(SweepError, match=r"study.journal: expected one writer, found lines of another"):
        held.__exit__(None, None, None)
    assert len(by_optuna(path)) == 1


def test_the_journal_says_which_trials_its_lines_speak_of(path):
    journal = Journal(path)
    study = study_of(journal)
    journal.take_changed()
    trials = [study.ask() for _ in range(3)]
    assert journal.take_changed() == {0, 1, 2}
    trials[1].suggest_int("width", 1, 9)
    study.tell(trials[2], state=TrialState.FAIL)
    assert journal.take_changed() == {1, 2}
    study.set_user_attr("error:2", "it fell")
    study.set_user_attr("colour", "red")
    assert journal.take_changed() == {2}
    again = Journal(path)
    study_of(again)
    assert again.take_changed() == {0, 1, 2}


# ── what breaks ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("torn", [b'{"op_code":4,"work', b"x" * 200_000, b"\0" * 70_000])
def test_a_torn_last_line_is_not_read_and_gone_with_the_next_one(path, torn):
    study_of(Journal(path)).ask()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    study = study_of(Journal(path))
    assert len(study.get_trials()) == 1
    assert path.read_bytes() == whole + torn  # who only reads changes nothing
    study.ask()
    assert path.read_bytes().startswith(whole + b'{"op_code":4')
    assert len(by_optuna(path)) == 2


@pytest.mark.parametrize("cut", range(0, 700, 50))
def test_a_block_torn_anywhere_leaves_the_lines_before_the_tear(path, cut):
    journal = Journal(path)
    study = study_of(journal)
    study.ask()
    before = path.stat().st_size
    with journal.at_once():
        trial = study.ask()
        for number in range(5):
            trial.suggest_int(f"width{number}", 1, 9)
    os.truncate(path, before + cut)
    left = path.read_bytes()[before:].count(b"\n")
    again = study_of(Journal(path))
    trials = again.get_trials()
    assert len(trials) == (2 if left else 1)
    assert len(trials[-1].params) == max(0, left - 1)
    assert again.ask().number == len(trials)
    assert len(by_optuna(path)) == len(trials) + 1


def test_a_line_that_is_no_json_is_told(path):
    study_of(Journal(path))
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    with pytest.raises(SweepError, match=r"study.journal: line 2: expected JSON, got: "):
        study_of(Journal(path))


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_leaves_the_file_whole_and_the_lines_for_the_next_attempt(path, monkeypatch, fails):
    journal = Journal(path)
    study = study_of(journal)
    whole, write = path.read_bytes(), os.write
    calls = []

    def half(file, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, data[:50])

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, fails, half if fails == "write" else full)
        held = journal.at_once()
        held.__enter__()
        study.ask().set_user_attr("policy", "{}")
        with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
            held.__exit__(None, None, None)
        assert path.read_bytes() == whole
    study.ask()
    assert by_optuna(path) == study.get_trials()
    assert [trial.user_attrs for trial in by_optuna(path)] == [{"policy": "{}"}, {}]
