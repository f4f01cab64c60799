"""Clocks that jump by hours and days while a sweep runs, in its own process and in its workers."""

import time

import pytest
from clocks import moved
from faults import LONG

from search.sweep import Sweep

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


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
