"""How far rankings agree, as a file for programs and as tables for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from search.agreement import Agreement, Pairs, mean_chance, mean_correlation, mean_overlap
from search.asked import written_share

ACROSS = 100
"""Letters in a line before columns are numbered instead of named."""

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""


def write_agreement(path: Path, found: Sequence[Agreement]) -> Path:
    """Write one line for every two rankings, group and share; return the file."""
    names = ("first", "second", "group", "channels", "share", "keep", "overlap", "chance", "spearman")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for one in found:
            for share, keep in one.keep.items():
                numbers = (one.overlap[share], one.chance(share), one.correlation)
                pair = (one.first, one.second, one.group, one.channels, float(share), keep)
                writer.writerow([*pair, *(f"{number:.6f}" for number in numbers)])
    return path


def agreement_tables(found: Sequence[Agreement], shares: Sequence[Fraction]) -> list[Table]:
    """Return for every share the mean overlap of every two rankings, then the mean of Spearman's ρ, as text."""
    labels = list(dict.fromkeys(label for one in found for label in (one.first, one.second)))
    tables = []
    for share in shares:
        heading = f"in common at {written_share(share)} (chance {100 * mean_chance(found, share):.0f} %)"
        tables.append(_matrix(heading, labels, mean_overlap(found, share), lambda mean: f"{100 * mean:.0f} %"))
    return [*tables, _matrix("Spearman's ρ (chance 0)", labels, mean_correlation(found), _signed)]


def _signed(mean: float) -> str:
    return f"{mean:.2f}".replace("-", "−")


def _matrix(heading: str, labels: Sequence[str], pairs: Pairs, written: Callable[[float], str]) -> Table:
    """Return one row and one column a label; columns have numbers where names would not fit into a line."""
    numbered = len(heading) + sum(len(label) + 2 for label in labels) > ACROSS
    rows = [f"{number} {label}" if numbered else label for number, label in enumerate(labels, start=1)]
    columns = [str(number) if numbered else label for number, label in enumerate(labels, start=1)]
    cells = [[written(pairs[row, column]) if row != column else "" for column in labels] for row in labels]
    return [heading, *columns], [[name, *line] for name, line in zip(rows, cells, strict=True)]
