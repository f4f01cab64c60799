"""How far criteria agree, as two heat maps: every two criteria, and every group with the first criterion."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search.agreement import Agreement, mean_chance, mean_overlap
from search.asked import written_share
from search.figures.colours import AROUND_CHANCE
from search.figures.sheet import Sheet

ACROSS, DOWN, MARGIN, TOP = 0.42, 0.25, 0.15, 1.15
"""Inches: a cell's sides, around all, above the cells."""


def plot_agreement(found: Sequence[Agreement], share: Fraction, *, title: str = "") -> Figure:
    """Draw the part of the kept channels that two criteria keep in common, when each group keeps `share`.

    To the left the mean over the groups for every two criteria; to the right each group, with the first criterion. The
    paler a cell, the nearer to what chance gives. Save with `figure.savefig(path)`.

    Args:
        found: of at least two rankings.
        share: one of those that were compared.
        title: in bold above both.
    """
    labels = list(dict.fromkeys(label for one in found for label in (one.first, one.second)))
    groups = list(dict.fromkeys((one.group, one.channels, one.keep[share]) for one in found))
    first, *others = labels
    pairs = mean_overlap(found, share)
    matrix = np.array([[pairs.get((row, column), np.nan) for column in labels] for row in labels])
    by_group = {(one.group, one.second): one.overlap[share] for one in found if one.first == first}
    table = np.array([[by_group[name, other] for other in others] for name, _, _ in groups])
    chance = mean_chance(found, share)

    names = [f"{name}  {keep}/{channels}" for name, channels, keep in groups]
    left = MARGIN + _length(labels)
    right = left + len(labels) * ACROSS + 0.35 + _length(names)
    end = right + len(others) * ACROSS
    height = DOWN * max(len(labels), len(groups))
    sheet = Sheet(max(end + 1.1, 7.2), TOP + max(height, 1.5) + _length(labels) + MARGIN)
    kept = f"each group keeps {written_share(share)}"
    sheet.heading(title, f"which part of the channels that two criteria keep is the same, %; {kept}; white is chance")
    norm = TwoSlopeNorm(vcenter=min(max(chance, 0.02), 0.98), vmin=0, vmax=1)
    sheet.text(left, TOP - 0.4, "every two criteria,\nmean over the groups", fontsize=8.5)
    _cells(sheet, left, matrix, labels, labels, norm)
    sheet.text(right, TOP - 0.4, f"each group,\nwith {first}", fontsize=8.5)
    image = _cells(sheet, right, table, names, others, norm)
    bar = sheet.figure.colorbar(image, cax=sheet.axes(end + 0.2, TOP, 0.12, max(height, 1.5)))
    bar.set_ticks([0, chance, 1], labels=["0 %", f"{100 * chance:.0f} %\nchance", "100 %"], fontsize=8)
    bar.minorticks_off()
    return sheet.figure


def _length(labels: Sequence[str]) -> float:
    """Return the inches that the longest of the labels takes, generously."""
    return 0.07 * max(map(len, labels)) + 0.1


def _cells(
    sheet: Sheet, left: float, values: NDArray[Any], rows: Sequence[str], columns: Sequence[str], norm: TwoSlopeNorm
) -> Any:
    """Draw parts of one as coloured cells with percentages in them; NaN stays empty."""
    axes = sheet.axes(left, TOP, len(columns) * ACROSS, len(rows) * DOWN)
    image = axes.imshow(values, cmap=AROUND_CHANCE, norm=norm, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(norm(value) - 0.5) > 0.3 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    return image
