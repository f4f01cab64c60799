"""The front as rows: raw values for programs, written ones for people."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.config import Objective
from search.pareto import baseline_value, front
from search.results import TrialRecord
from search.units import percent, written

HEADERS = {
    "trial": "trial",
    "accuracy": "accuracy",
    "accuracy_change": "change in points",
    "macs": "MACs",
    "macs_share": "MACs kept",
    "params": "parameters",
    "params_share": "parameters kept",
    "latency_ms": "latency",
    "criterion": "criterion",
    "allocation": "allocation",
    "auxiliary": "auxiliary losses at",
}


def front_table(
    records: Sequence[TrialRecord], baseline: Mapping[str, Any], objectives: Sequence[Objective]
) -> list[dict[str, Any]]:
    """Return one row for each trial of the front, cheapest first; shares are parts of the baseline's value.

    Raises:
        SweepError: the baseline lacks accuracy, MACs or parameters.
    """
    members = front(records, objectives)
    return [_row(record, baseline) for record in members]


def _row(record: TrialRecord, baseline: Mapping[str, Any]) -> dict[str, Any]:
    metrics = record.metrics
    assert metrics is not None
    return {
        "trial": record.number,
        "accuracy": metrics.accuracy,
        "accuracy_change": metrics.accuracy - baseline_value(baseline, "accuracy"),
        "macs": metrics.macs,
        "macs_share": metrics.macs / baseline_value(baseline, "macs"),
        "params": metrics.params,
        "params_share": metrics.params / baseline_value(baseline, "params"),
        "latency_ms": metrics.latency_ms,
        "criterion": record.criterion,
        "allocation": record.params.get("allocation"),
        "auxiliary": None if record.policy.auxiliary is None else str(record.policy.auxiliary),
        "epochs": metrics.epoch,
        "seconds": round(record.seconds or metrics.seconds, 3),
        "policy": record.policy.fingerprint,
    }


def write_front_csv(
    path: Path, records: Sequence[TrialRecord], baseline: Mapping[str, Any], objectives: Sequence[Objective]
) -> None:
    """Write the front, one trial a line; the header stands there even without one."""
    rows = front_table(records, baseline, objectives)
    names = [*HEADERS, "epochs", "seconds", "policy"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def front_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells as text; columns that no row fills are left out."""
    shown = [name for name in HEADERS if any(row[name] is not None for row in rows)]
    return [HEADERS[name] for name in shown], [[_cell(name, row[name]) for name in shown] for row in rows]


def _cell(name: str, value: Any) -> str:
    match name:
        case _ if value is None:
            return "—"
        case "accuracy" | "macs" | "params" | "latency_ms":
            return written(name, value)
        case "macs_share" | "params_share":
            return percent(value)
        case "accuracy_change":
            return f"{100 * value:+.2f}".replace("-", "−")
        case _:
            return str(value)


def front_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the front as a markdown table."""
    if not rows:
        return "No trial finished within the constraints.\n"
    headers, cells = front_cells(rows)
    lines = [headers, ["---"] * len(headers), *cells]
    return "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |\n" for line in lines)
