"""Clocks of a test's processes that jump, by libfaketime."""

import random
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

HOUR = 60 * 60
JUMPS = (3 * HOUR, -5 * HOUR, 30 * HOUR, -48 * HOUR, 0)


@contextmanager
def moved(place, rng=None):
    """Move the clocks of the sweep's own process and of its workers every now and then; yields the jumps.

    Skips without the library for it.
    """
    libfaketime = pytest.importorskip("libfaketime")
    found = list(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime was installed without a compiler")
    clock, jumps, end = place.folder / "clock", [], threading.Event()
    clock.write_text("+0\n")
    draft = clock.with_suffix(".draft")
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
            draft.write_text(f"{jumps[-1]:+}\n")
            draft.replace(clock)

    thread = threading.Thread(target=jump)
    thread.start()
    try:
        yield jumps
    finally:
        end.set()
        thread.join()
