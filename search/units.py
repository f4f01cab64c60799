"""How numbers are written for people: 40.6 M, 48.0 %, 1.25 ms."""

from __future__ import annotations

from search.config import Objective

WORDS: dict[Objective, str] = {
    "accuracy": "accuracy",
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "latency",
}


def short_count(value: float) -> str:
    """Return a count with three digits: `512`, `84.1 k`, `40.6 M`, `1.82 G`."""
    scaled, letter = float(value), ""
    for unit in ("k", "M", "G", "T"):
        if abs(scaled) < 999.5:
            break
        scaled, letter = scaled / 1000, f" {unit}"
    decimals = 0 if abs(scaled) >= 99.95 or not letter else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{decimals}f}{letter}"


def percent(share: float, decimals: int = 1) -> str:
    """Return a part of one as `48.0 %`."""
    return f"{100 * share:.{decimals}f} %"


def written(objective: Objective, value: float) -> str:
    """Return a measured value with its unit."""
    if objective == "accuracy":
        return percent(value, 2)
    return f"{value:.3g} ms" if objective == "latency_ms" else short_count(value)
