"""Clocks that jump by hours and days while a sweep runs, in its own process and in its workers."""

import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import LONG

from search.sweep import Sweep

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

JUMPS = ("+3h", "-5h", "+30h", "-2d", "+0")


@contextmanager
def moved(place, rng=None):
    """Move the clocks of a place's processes every now and then; yields the jumps. Skips without the library for it."""
    libfaketime = pytest.importorskip("libfaketime")
    found = list(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime was installed without a compiler")
    clock, jumps, end = place.folder / "clock", [], threading.Event()
    clock.write_text("+0\n")
    place.environment |= {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    drawn = rng or random.Random(0)

    def jump():
        while not end.wait(drawn.uniform(0.5, 2)):
            jumps.append(drawn.choice(JUMPS))
            clock.write_text(f"{jumps[-1]}\n")

    thread = threading.Thread(target=jump)
    thread.start()
    try:
        yield jumps
    finally:
        end.set()
        thread.join()


def test_clocks_that_jump_change_nothing_and_times_stay_sane(new_place, kept, rng):
    place, began = new_place(**LONG), time.monotonic()
    with moved(place, rng) as jumps:
        assert place.run() == 0, place.err
    taken = time.monotonic() - began
    for record in Sweep.load(place.sweep).records:
        assert 0 <= record.seconds <= taken
        assert record.started <= record.ended
    kept(place, "clocks jump", "by hours and days, in the sweep's process and its workers", len(jumps))


def test_a_time_budget_is_of_seconds_that_have_passed(new_place, rng):
    place = new_place(search={"time_budget": "1h"})
    with moved(place, rng):
        assert place.run() == 0, place.err
    assert len(Sweep.load(place.sweep).records) == 6
    assert Sweep.load(place.sweep).running_seconds < 1800
