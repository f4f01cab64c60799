import math

import pytest
import ray.exceptions

from search.config import parse_experiment
from search.errors import SearchError, SweepError
from search.measurement import bounds_of, excesses, one_line, read_metrics
from search.results import Metrics

RESULT = {"epoch": 3, "accuracy": 0.5, "loss": 1.0, "macs": 60, "params": 30, "seconds": 2.0}


def test_a_result_with_other_keys_is_the_measurement_in_it():
    metrics = Metrics(epoch=3, accuracy=0.5, loss=1.0, macs=60, params=30, latency_ms=1.5, seconds=2.0)
    assert read_metrics({**metrics.to_dict(), "done": True, "config/x": "y"}, ["latency_ms"]) == metrics


@pytest.mark.parametrize("name", ["epoch", "accuracy", "loss", "macs", "params", "latency_ms"])
@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "7"])
def test_what_is_needed_must_be_a_finite_number(name, value):
    with pytest.raises(SearchError, match=f"{name}: expected a finite number, got"):
        read_metrics({**RESULT, "latency_ms": 1.0, name: value}, ["latency_ms"])


def test_an_error_is_told_before_what_is_missing():
    with pytest.raises(SearchError, match=r"^GraphError: no rule$"):
        read_metrics({"error": "Traceback:\n  File\npruning.errors.GraphError: no rule\n"}, ["accuracy"])


def test_excess_is_the_part_of_the_bound_that_is_missed():
    limits = {"macs": "70%", "accuracy": 0.6, "params": 20}
    experiment = parse_experiment({"name": "x", "model": "resnet20", "constraints": limits})
    bounds = bounds_of(experiment, {"macs": 90})
    assert bounds == pytest.approx({"macs": 63, "accuracy": 0.6, "params": 20})
    missed = excesses(read_metrics({**RESULT, "macs": 63}, []), bounds)
    assert missed == pytest.approx({"macs": 0, "accuracy": 0.1 / 0.6, "params": 0.5})
    assert missed["macs"] <= 0  # although 0.7 · 90 is 62.99…
    with pytest.raises(SweepError, match=r"constraints\.macs: 70% of the baseline's, but the baseline has no macs"):
        bounds_of(experiment, {})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ray.exceptions.RayTaskError("train", "Traceback …", KeyError("w")), "KeyError: 'w'"),
        ("layer1: expected 3 channels, got 4", "layer1: expected 3 channels, got 4"),
        ("Traceback (most recent call last):\n  raise ValueError('x')\nValueError: x\nmore", "ValueError: x"),
        (
            "Failure # 1 (occurred at a)\nKeyError: 1\nFailure # 2 (occurred at b)\nThe actor died.\n\tpid: 3",
            "The actor died.",
        ),
        ("", "failed without a word"),
    ],
)
def test_every_kind_of_error_fits_one_line(error, line):
    assert one_line(error) == line
