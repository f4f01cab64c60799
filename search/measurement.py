"""What a trial reported, judged: a measurement or a fault, and how far from the limits."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from numbers import Real
from typing import Any

from search.config import Experiment
from search.errors import SearchError, SweepError
from search.pareto import ROUNDING
from search.results import Metrics

_WHOLE = ("epoch", "macs", "params")
_ALWAYS = tuple(field.name for field in fields(Metrics) if field.default is MISSING)


def read_metrics(result: Mapping[str, Any], needed: Collection[str]) -> Metrics:
    """Return the measurement in a result, whose other keys do not matter.

    Args:
        result: metrics by name; or `error`, one line or a traceback, from a trial that failed.
        needed: metrics that must be there besides those that every measurement has.

    Raises:
        SearchError: an error, or a metric that is missing or no finite number.
    """
    if result.get("error"):
        raise SearchError(one_line(result["error"]))
    for name in dict.fromkeys([*needed, *_ALWAYS]):
        value = result.get(name)
        if not isinstance(value, Real) or not math.isfinite(value):
            raise SearchError(f"{name}: expected a finite number, got {'nothing' if value is None else value}")
    there = [name for name in Metrics.__slots__ if result.get(name) is not None]
    values: dict[str, Any] = {name: (int if name in _WHOLE else float)(result[name]) for name in there}
    return Metrics(**values)


def bounds_of(experiment: Experiment, baseline: Mapping[str, float]) -> dict[str, float]:
    """Return the bound of every limited metric.

    Raises:
        SweepError: a limit relative to a metric that the baseline lacks.
    """
    for name, limit in experiment.constraints.items():
        if limit.relative and not baseline.get(name):
            raise SweepError(f"constraints.{name}: {limit} of the baseline's, but the baseline has no {name}")
    return {name: limit.of(baseline.get(name, 0.0)) for name, limit in experiment.constraints.items()}


def excesses(metrics: Metrics, bounds: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each bound is missed, as a part of it: ≤ 0 is within. Samplers add these up."""
    return {name: _excess(name, getattr(metrics, name), bound) for name, bound in bounds.items()}


def _excess(name: str, value: float, bound: float) -> float:
    excess = (bound - value if name == "accuracy" else value - bound) / bound
    return 0.0 if abs(excess) < ROUNDING else excess


def one_line(error: object) -> str:
    """Return an exception, the text of a traceback, or that of Tune's error file (its last entry), as one line."""
    cause = getattr(error, "cause", None) or error  # Ray wraps what a worker raised
    if isinstance(cause, BaseException):
        first = next(iter(str(cause).strip().splitlines()), "")
        return f"{type(cause).__name__}: {first}" if first else type(cause).__name__
    entry = re.sub(r"(?s).*Failure # \d+ \(occurred at [^)]*\)", "", str(cause)).strip()
    raised = re.findall(r"(?m)^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt|Exit)(?:: .*)?)$", entry)
    return raised[-1] if raised else next(iter(entry.splitlines()), "failed without a word")
