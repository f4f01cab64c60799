"""Addresses and their copies, on a file system in memory."""

import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from search import mirror
from search.errors import PlaceError, SweepError
from search.mirror import Copy, kept, pulled, pushed
from search.places import address_of, discard, fetch, is_address, is_there, path_of, shown, store

NAMES = st.text("abcXYZ019-_+@ .", min_size=1, max_size=9).filter(lambda name: name.strip(".") == name)


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.sampled_from(["s3", "gs", "abfs", "memory"]), st.lists(NAMES, min_size=1, max_size=4))
def test_the_path_of_an_address_says_which_it_is_of(scheme, parts):
    address = f"{scheme}://{'/'.join(parts)}"
    path = path_of(address)
    assert is_address(address)
    assert path.is_absolute()
    assert address_of(path) == address
    assert address_of(path / "below") == f"{address}/below"
    assert shown(f"sweep {path}: x") == f"sweep {address}: x"


def test_other_paths_are_those_that_they_name(tmp_path):
    assert path_of("a/b") == Path("a/b")
    assert path_of(tmp_path) == tmp_path
    assert path_of(f"file://{tmp_path}/x") == tmp_path / "x"
    assert path_of("s3://bucket//a/./b/") == path_of("s3://bucket/a/b")
    assert [address_of(path) for path in (tmp_path, Path("a"), path_of("s3://a").parents[1])] == [None] * 3
    assert [is_address(text) for text in ("a/b", "a:b", "model:function", "")] == [False] * 4


@pytest.mark.parametrize("text", ["s3://me:secret@bucket/x", "s3://bucket/../x", "s3://", "zip://a::s3://bucket/b"])
def test_what_is_not_one_address_is_told_without_a_password(text):
    with pytest.raises(PlaceError, match="expected") as error:
        path_of(text)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["nosuch://bucket/x", "gs://bucket/x"])
def test_a_service_that_is_not_there_is_told_in_one_line(text, machine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(PlaceError, match=rf"^{text}: ") as error:
        fetch(path_of(text))
    assert ("prunesearch[gs]" in str(error.value)) == text.startswith("gs")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_here_as_it_is_there(there, machine):
    machine("one")
    path = path_of("memory://bucket/a/file")
    assert (fetch(path), path.exists(), is_there(path)) == (path, False, False)
    for content in (b"first", b"other"):
        there.pipe("/bucket/a/file", content)
        assert fetch(path).read_bytes() == content
    path.write_bytes(b"mine")
    store(path)
    assert there.cat("/bucket/a/file") == b"mine"
    machine("two")
    again = path_of("memory://bucket/a/file")
    assert again != path
    assert fetch(again).read_bytes() == b"mine"
    discard(again)
    discard(again)
    assert (again.exists(), is_there(again), path.exists()) == (False, False, True)
    assert [name for name in again.parent.iterdir() if name.suffix == ".draft"] == []


def test_a_file_that_has_not_changed_is_not_fetched_again(there, machine, monkeypatch):
    there.pipe("/bucket/file", b"content")
    path = fetch(path_of("memory://bucket/file"))
    before = path.stat().st_ino
    assert fetch(path).stat().st_ino == before


def test_of_a_path_that_is_no_copy_nothing_is_done(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    store(path)
    pushed(tmp_path)
    assert (fetch(path), pulled(tmp_path), is_there(path)) == (path, tmp_path, True)
    with kept(tmp_path, print):
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    discard(path)
    assert not path.exists()


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def contents(folder):
    """The files of a folder that travel, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".left", ".lock", ".draft")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("seed", range(20))
def test_machines_that_take_turns_all_have_what_was_written_last(there, machine, seed):
    chance, truth = random.Random(seed), {}
    for turn in range(12):
        folder = pulled(machine(chance.choice(["one", "two", "three"])))
        assert contents(folder) == truth
        for _ in range(chance.randrange(4)):
            path = folder / chance.choice(["a", "b", "deep/c", "deep/er/d"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{turn} {chance.random()}".encode())
            truth[path.relative_to(folder).as_posix()] = path.read_bytes()
        pushed(folder)
        gone = chance.choice([None, *truth])
        if gone and chance.random() < 0.3:
            there.rm(f"/bucket/sweep/{gone}")
            del truth[gone]


def test_locks_drafts_and_the_runs_files_stay_on_the_machine(there, machine):
    folder = machine("one")
    stays = ["x.draft", "sweep.lock", "tune-1/trial/params.json", "snapshots/trial-1.pt", "y.left", "driver.json"]
    for name in ["study.journal", *stays]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    pushed(folder)
    assert there.find("/bucket/sweep") == ["/bucket/sweep/study.journal"]


def test_a_name_at_an_address_leads_nowhere_else(there, machine):
    folder = machine("one")
    for name in ("../other", "a/../../other", "./here", "a//b"):
        there.store[f"/bucket/sweep/{name}"] = there.open("/bucket/x", "wb")
        there.store[f"/bucket/sweep/{name}"].write(b"of a stranger")
    there.pipe("/bucket/sweep/study.journal", b"1")
    assert contents(pulled(folder)) == {"study.journal": b"1"}
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == ["sweep"]


def test_what_has_changed_on_both_sides_is_fetched_and_the_other_stays_beside_it(there, machine):
    first = machine("one")
    first.mkdir(parents=True)
    (first / "journal").write_text("begin")
    pushed(first)
    (pulled(machine("two")) / "journal").write_text("begin, of two")
    pushed(machine("two"))
    (first / "journal").write_text("begin, of one")
    pulled(machine("one"))
    assert contents(first) == {"journal": b"begin, of two"}
    assert (first / "journal.left").read_text() == "begin, of one"


def test_who_died_while_writing_goes_on_with_what_is_on_its_machine(there, machine):
    first = machine("one")
    first.mkdir(parents=True)
    (first / "journal").write_text("1")
    pushed(first)
    Copy(first).take({"driver": "dead", "host": "one", "pid": 1, "beat": 1})
    (first / "journal").write_text("1 2 3")
    there.pipe("/bucket/sweep/journal", b"1 2")  # it had written that much
    assert contents(pulled(first)) == {"journal": b"1 2 3"}
    assert (pulled(machine("two")) / "journal").read_text() == "1 2"
    pushed(machine("one"))
    assert there.cat("/bucket/sweep/journal") == b"1 2 3"


# ── drivers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def heeds_interrupts():
    """As in a terminal; below `nohup` a process does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "PUSH_S", 0.05)
    monkeypatch.setattr(mirror, "LOST_S", 1.0)
    monkeypatch.setattr(mirror, "REST", 0)


def test_what_a_driver_writes_is_there_soon_and_all_of_it_at_the_end(there, machine, quick):
    folder, said = machine("one"), []
    with kept(folder, said.append):
        folder.mkdir()
        (folder / "journal").write_text("begin")
        deadline = time.monotonic() + 20
        while not there.exists("/bucket/sweep/journal"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Copy(folder).lease()["pid"]
        (folder / "journal").write_text("begin end")
    assert there.cat("/bucket/sweep/journal") == b"begin end"
    assert Copy(folder).lease() is None
    assert said == []


def test_a_second_driver_is_refused_on_this_machine_and_on_others(there, machine, quick):
    said = []
    with kept(machine("one"), print):
        with pytest.raises(SweepError, match="is running; another process on this machine"):
            kept(machine("one"), print).__enter__()
        with pytest.raises(SweepError, match=r"is running on \S+, process \d+"):
            kept(machine("two"), said.append).__enter__()
    assert "waiting 1 s for a sign of life" in said[0]


def test_a_driver_gives_signs_of_life_however_long_its_writing_takes(there, machine, quick, monkeypatch):
    folder, push, beats = machine("one"), Copy.push, []

    def push_slowly(copy):
        before = copy.lease()["beat"]
        time.sleep(1)
        beats.append(copy.lease()["beat"] - before)
        push(copy)

    monkeypatch.setattr(Copy, "push", push_slowly)
    with kept(folder, print):
        folder.mkdir()
        (folder / "journal").write_text("whole")
        time.sleep(0.3)
    assert len(beats) == 2  # one while it runs, one at its end
    assert min(beats) >= 5
    assert there.cat("/bucket/sweep/journal") == b"whole"


def test_a_driver_that_gives_no_sign_of_life_is_taken_over(there, machine, quick):
    first = machine("one")
    first.mkdir(parents=True)
    (first / "journal").write_text("1")
    pushed(first)
    Copy(first).take({"driver": "dead", "host": "elsewhere", "pid": 1, "beat": 1})
    second, said = machine("two"), []
    with kept(second, said.append):
        assert (second / "journal").read_text() == "1"
        (second / "journal").write_text("1 2")
    assert said == ["memory://bucket/sweep was kept by elsewhere; waiting 1 s for a sign of life"]
    assert there.cat("/bucket/sweep/journal") == b"1 2"
    with kept(machine("one"), said.append):  # it is back, and behind
        assert (first / "journal").read_text() == "1 2"


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_driver_whose_sweep_was_taken_over_stops_and_writes_nothing_more(there, machine, quick):
    folder = machine("one")

    def take_over():
        time.sleep(0.3)
        there.pipe("/bucket/sweep/driver.json", b'{"driver": "other", "host": "elsewhere", "pid": 1, "beat": 1}')

    def work():
        with kept(folder, print):
            other.start()
            folder.mkdir()
            try:
                time.sleep(30)
            except KeyboardInterrupt:
                (folder / "journal").write_text("late")
            else:
                pytest.fail("was not stopped")

    other = threading.Thread(target=take_over)
    with pytest.raises(SweepError, match="elsewhere has taken it over"):
        work()
    other.join()
    assert not there.exists("/bucket/sweep/journal")
    assert Copy(folder).lease()["driver"] == "other"


@pytest.mark.usefixtures("heeds_interrupts")
def test_what_a_driver_writes_when_it_is_stopped_does_not_travel_with_a_push_that_is_under_way(
    there, machine, quick, monkeypatch
):
    folder, push, pushing = machine("one"), Copy.push, threading.Event()

    def push_slowly(copy):
        pushing.set()  # it has seen that the sweep is ours
        time.sleep(0.5)
        push(copy)

    def work():
        with kept(folder, print):
            folder.mkdir()
            assert pushing.wait(20)
            there.pipe("/bucket/sweep/driver.json", b'{"driver": "other", "host": "elsewhere", "pid": 1, "beat": 1}')
            try:
                time.sleep(30)
            except KeyboardInterrupt:
                (folder / "journal").write_text("late")
                time.sleep(1)
            else:
                pytest.fail("was not stopped")

    monkeypatch.setattr(Copy, "push", push_slowly)
    with pytest.raises(SweepError, match="elsewhere has taken it over"):
        work()
    assert not there.exists("/bucket/sweep/journal")


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_driver_that_heeds_no_interrupt_is_stopped_once_it_does(there, machine, quick):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = machine("one")

    def work():
        with kept(folder, print):
            there.pipe("/bucket/sweep/driver.json", b'{"driver": "other", "host": "elsewhere", "pid": 1, "beat": 1}')
            time.sleep(0.5)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with suppress(KeyboardInterrupt):
                time.sleep(30)
                pytest.fail("was not stopped")

    with pytest.raises(SweepError, match="elsewhere has taken it over"):
        work()


def test_a_place_that_cannot_be_written_for_a_while_gets_everything_later(there, machine, quick, monkeypatch):
    folder, away, put = machine("one"), [], MemoryFileSystem.put

    def put_unless_away(*args, **options):
        if away:
            raise TimeoutError("no answer")
        return put(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, "put", put_unless_away)

    def write(text, *, until_the_end):
        with kept(folder, print):
            away.append(True)
            folder.mkdir(exist_ok=True)
            (folder / "journal").write_text(text)
            time.sleep(0.3)
            if not until_the_end:
                away.clear()

    write("1", until_the_end=False)
    assert there.cat("/bucket/sweep/journal") == b"1"
    with pytest.raises(PlaceError, match="memory://bucket/sweep: no answer; what was not written"):
        write("1 2", until_the_end=True)
    away.clear()
    with kept(folder, print):
        assert there.cat("/bucket/sweep/journal") == b"1"
    assert there.cat("/bucket/sweep/journal") == b"1 2"
