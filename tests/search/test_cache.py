"""Files that are made once for each key by whoever asks first, and go when the folder is full."""

import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from filelock import FileLock, Timeout

from search import cache as module
from search.cache import DAY, GIB, NOT_KEPT, Cache, key_of
from search.counts import counting
from search.unwritten import going_without, telling

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", limit_gib=1.0)


@pytest.fixture(scope="module")
def processes():
    """Three processes; they stay for all tests of this file."""
    with ProcessPoolExecutor(3, mp_context=SPAWN) as pool:
        yield pool


def read(path):
    """Return a text that ends with a full stop."""
    text = path.read_text()
    if not text.endswith("."):
        raise ValueError(f"{path}: torn")
    return text


def writes(text, seconds=0.0):
    """Return what makes a text, with a pause in the middle."""

    def make(draft):
        draft.write_text(text[: len(text) // 2])
        time.sleep(seconds)
        draft.write_text(text)
        return text

    return make


def never(_):
    raise AssertionError("made again")


def entry(cache, key, size=0, age=0.0):
    """Put a file into the cache that was last used some seconds ago; return its path."""
    path = cache.path("kind", key, ".txt")
    with cache.locked(path):
        path.write_text("x" * (size - 1) + ".")
    used = time.time() - age
    os.utime(path, (used, used))
    return path


def alive(*paths):
    return [path.exists() for path in paths]


# ── once ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_made_is_read_from_then_on(cache):
    path = cache.path("kind", "key", ".txt")
    assert cache.once(path, read, writes("one.")) == "one."
    assert cache.once(path, read, never) == "one."
    assert path.read_text() == "one."
    assert [found.name for found in path.parent.iterdir()] == ["key.txt"]


def test_what_the_maker_does_not_write_is_not_kept(cache):
    path = cache.path("kind", "key", ".txt")
    assert cache.once(path, read, lambda _: "one.") == "one."
    assert cache.once(path, read, lambda _: "two.") == "two."
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize("torn", ["", "o", "one"])
def test_a_torn_file_is_made_again(cache, torn):
    path = entry(cache, "key")
    path.write_text(torn)
    assert cache.once(path, read, writes("one.")) == "one."
    assert cache.once(path, read, never) == "one."


@pytest.mark.parametrize("place", range(4))
def test_a_file_that_was_changed_is_made_again_though_it_can_be_read(cache, place):
    path = cache.path("kind", "key", ".txt")
    cache.once(path, read, writes("one."))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    if place < 3:
        read(path)
    assert cache.once(path, read, writes("two.")) == "two."
    assert cache.once(path, read, never) == "two."


def test_a_checksum_goes_with_its_file(tmp_path):
    cache = Cache(tmp_path / "cache", 50 / GIB)
    for number in range(20):
        cache.once(cache.path("kind", str(number), ".txt"), read, writes("x" * 19 + "."))
    assert len(list((cache.folder / "sums").iterdir())) == len(list((cache.folder / "kind").iterdir())) == 2


@pytest.mark.parametrize("missing", ["", "locks", "kind", "sums"])
def test_without_a_place_to_write_things_are_made_and_not_kept(tmp_path, missing):
    cache, lines = Cache(tmp_path / "cache", 1.0), []
    if missing:
        cache.folder.mkdir()
    (cache.folder / missing).touch()  # a file, where a folder is to be made

    def make(draft):
        with going_without(NOT_KEPT, draft):
            return writes("one.")(draft)
        return "one."

    with telling(lines.append):
        for _ in range(2):
            assert cache.once(cache.path("kind", "key", ".txt"), read, make) == "one."
    assert {line.partition(":")[0] for line in lines} == {NOT_KEPT}


def test_a_maker_that_fails_leaves_nothing(cache):
    path = cache.path("kind", "key", ".txt")

    def fail(draft):
        draft.write_text("on")
        raise OSError("no more room")

    with pytest.raises(OSError, match="no more room"):
        cache.once(path, read, fail)
    assert not any(path.parent.iterdir())
    assert cache.once(path, read, writes("one.")) == "one."


def test_a_key_is_of_everything_that_it_is_made_from():
    keys = {key_of(parts) for parts in ([1, "a"], [1, "b"], ["1", "a"], [[1], "a"], [])}
    assert len(keys) == 5
    assert key_of([{"a": 1, "b": 2}]) == key_of([{"b": 2, "a": 1}])


def test_who_counts_hears_of_everything_that_is_made_or_found(cache):
    events, path = [], cache.path("kind", "key", ".txt")
    with counting(events.append):
        cache.once(path, read, writes("one."))
        cache.once(path, read, never)
        cache.find(cache.path("kind", "other", ".txt"), read)
    cache.once(path, read, never)
    assert events == [("kind", "key", True), ("kind", "key", False)]


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────


def ask(folder, log, key, limit_gib=1.0):
    """Ask for a key in this process; the log tells who made it."""
    cache = Cache(folder, limit_gib)

    def make(draft):
        with log.open("a") as file:
            file.write(f"{key}\n")
        return writes(f"{key}.", seconds=0.1)(draft)

    return cache.once(cache.path("kind", key, ".txt"), read, make)


def test_several_processes_that_ask_for_a_key_make_it_once(processes, tmp_path):
    keys = ["a", "b"] * 6
    asked = [processes.submit(ask, tmp_path / "cache", tmp_path / "log", key) for key in keys]
    assert [answer.result() for answer in asked] == [f"{key}." for key in keys]
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b"]


def ask_at_random(folder, seed):
    """Ask for many keys of a cache that has room for a few; return the answers that were wrong."""
    cache, draw, wrong = Cache(folder, 100 / GIB), random.Random(seed), []
    for _ in range(150):
        key = f"{draw.randrange(8)}"
        text = 20 * key + "."
        if cache.once(cache.path("kind", key, ".txt"), read, writes(text)) != text:
            wrong.append(key)
    return wrong


def test_processes_that_remove_what_others_want_get_what_they_ask_for(processes, tmp_path):
    asked = [processes.submit(ask_at_random, tmp_path / "cache", seed) for seed in range(3)]
    assert [answer.result() for answer in asked] == [[], [], []]
    left = list((tmp_path / "cache" / "kind").iterdir())
    assert sum(path.stat().st_size for path in left) <= 100
    assert {path.suffix for path in left} == {".txt"}


def die(folder):
    """Begin to make a key, and be killed."""
    cache = Cache(folder, 1.0)

    def make(draft):
        draft.write_text("on")
        os.kill(os.getpid(), signal.SIGKILL)

    cache.once(cache.path("kind", "key", ".txt"), read, make)


def test_a_maker_that_is_killed_leaves_no_lock_and_no_torn_file(cache):
    process = SPAWN.Process(target=die, args=(cache.folder,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    path = cache.path("kind", "key", ".txt")
    (draft,) = path.parent.iterdir()
    assert draft.suffix == ".draft"
    answers = []
    thread = threading.Thread(target=lambda: answers.append(cache.once(path, read, writes("one."))), daemon=True)
    thread.start()
    thread.join(10)
    assert answers == ["one."]


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_used_least_recently_goes_first(tmp_path):
    cache = Cache(tmp_path / "cache", 100 / GIB)
    paths = [entry(cache, key, size=40, age=age) for key, age in (("old", 30), ("older", 40), ("new", 20))]
    new = cache.path("other", "key", ".txt")
    cache.once(new, read, writes("x" * 19 + "."))
    assert alive(*paths, new) == [True, False, True, True]
    cache.once(cache.path("other", "second", ".txt"), read, writes("x" * 9 + "."))
    assert alive(*paths, new) == [False, False, True, True]


def test_what_is_read_counts_as_used(tmp_path):
    cache = Cache(tmp_path / "cache", 100 / GIB)
    first, second = (entry(cache, key, size=40, age=age) for key, age in (("first", 40), ("second", 30)))
    written = first.stat().st_mtime_ns
    assert cache.find(first, read) is not None
    assert first.stat().st_mtime_ns == written
    cache.once(cache.path("kind", "third", ".txt"), read, writes("x" * 29 + "."))
    assert alive(first, second) == [True, False]


def test_within_the_limit_nothing_goes(tmp_path):
    cache = Cache(tmp_path / "cache", 100 / GIB)
    paths = [entry(cache, key, size=40, age=10) for key in ("first", "second")]
    cache.once(cache.path("kind", "third", ".txt"), read, writes("x" * 19 + "."))
    assert alive(*paths) == [True, True]


def test_what_was_just_written_and_what_is_in_use_stay_whatever_the_limit(tmp_path):
    cache = Cache(tmp_path / "cache", 0)
    used, idle = (entry(cache, key, size=40, age=10) for key in ("used", "idle"))
    new, held = cache.path("kind", "new", ".txt"), threading.Event()
    end = threading.Event()

    def use():
        with cache.locked(used):
            held.set()
            end.wait(10)

    with ThreadPoolExecutor() as pool:
        using = pool.submit(use)
        held.wait(10)
        cache.once(new, read, writes("one."))
        assert alive(used, idle, new) == [True, False, True]
        end.set()
        using.result()
    with cache.locked(idle, new):  # this thread's own locks count, too
        cache.tidy()
        assert alive(used, idle, new) == [False, False, True]


# ── what dead processes leave ────────────────────────────────────────────────────────────────────────────────────────


def aged(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    used = time.time() - seconds
    os.utime(path, (used, used))
    return path


def test_drafts_and_locks_that_nobody_touched_for_a_day_go(cache):
    names = ("kind/key.txt.0123.draft", "locks/kind-key.txt.lock")
    stale = [aged(cache.folder / name, DAY + 60) for name in names]
    fresh = [aged(cache.folder / name.replace("key", "other"), DAY - 60) for name in names]
    kept = aged(cache.folder / "kind" / "key.txt", 100 * DAY)
    cache.tidy()
    assert alive(*stale, *fresh, kept) == [False, False, True, True, True]


def test_a_draft_that_looks_old_stays_while_its_maker_holds_the_lock(cache):
    path = cache.path("kind", "key", ".txt")

    def make(draft):
        writes("one.")(draft)
        aged(draft, 3 * DAY)  # the clock has jumped
        cache.tidy()
        assert draft.exists()
        return "one."

    assert cache.once(path, read, make) == "one."
    assert cache.once(path, read, never) == "one."


def test_a_lock_that_is_held_for_days_stays(cache):
    path = cache.path("kind", "key", ".txt")
    with cache.locked(path):
        (lock,) = (cache.folder / "locks").iterdir()
        aged(lock, 3 * DAY)
        cache.tidy()
        assert lock.exists()
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
    cache.tidy()
    assert not lock.exists()


def test_a_lock_that_is_used_again_is_not_old(cache):
    path = cache.path("kind", "key", ".txt")
    for _ in range(2):
        with cache.locked(path):
            pass
        (lock,) = (cache.folder / "locks").iterdir()
        assert lock.stat().st_mtime > time.time() - 60
        aged(lock, DAY - 60)


def test_a_file_that_goes_takes_its_lock_with_it(tmp_path):
    cache = Cache(tmp_path / "cache", 50 / GIB)
    for number in range(20):
        cache.once(cache.path("kind", str(number), ".txt"), read, writes("x" * 19 + "."))
    assert len(list((cache.folder / "kind").iterdir())) == 2
    assert len(list((cache.folder / "locks").iterdir())) <= 3


def test_two_never_hold_a_lock_that_is_removed_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DAY", -60)  # every lock is old
    cache, inside, most = Cache(tmp_path / "cache", 0), [], []

    def make(draft):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        draft.write_text("one.")
        inside.pop()
        return "one."

    def work():
        for _ in range(30):
            cache.once(cache.path("kind", "key", ".txt"), read, make)
            cache.tidy()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    assert max(most) == 1
