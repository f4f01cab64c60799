"""What each group's cut costs, one small picture for the groups of one width, one line a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search.figures.colours import BASELINE, BY_DEPTH

ACROSS = 3
MARKERS = "osD^vPX"


def plot_sensitivity(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    channels: Mapping[str, int],
    baseline: float,
    *,
    title: str = "",
) -> Figure:
    """Draw accuracy over the share of its channels that one group alone keeps.

    Args:
        curves: for each group widths with accuracies, 0 to 1.
        channels: each group's full width; groups of the same one share a picture, as those of a stage have.
        baseline: accuracy of the uncut network, where all lines end.
        title: in bold above all.
    """
    stages: dict[int, list[str]] = {}
    for name in curves:
        stages.setdefault(channels[name], []).append(name)
    across, down = min(ACROSS, len(stages)), ceil(len(stages) / ACROSS)
    entries = max(map(len, stages.values()))
    height = 2.6 + 0.17 * ceil(entries / 2)
    figure = Figure(figsize=(max(6.5, 3.9 * across), height * down + 0.7), dpi=150, layout="constrained")
    every = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axes, (width, names) in zip(every, stages.items(), strict=False):
        _stage(axes, [(name, curves[name]) for name in names], width, baseline)
    for axes in every[len(stages) :]:
        axes.set_visible(False)
    for axes in every[::across]:
        axes.set_ylabel("accuracy on validation images, %", fontsize=8.5)
    lowest = min((accuracy for curve in curves.values() for _, accuracy in curve), default=baseline)
    span = max(100 * (baseline - lowest), 0.5)
    every[0].set_ylim(100 * min(lowest, baseline) - 0.06 * span, None)
    how = "one group cut at a time, batch norm recalibrated, no fine-tuning"
    figure.suptitle(f"{title}\n{how}" if title else how, x=0.01, ha="left", fontsize=10)
    return figure


def _stage(axes: Axes, curves: Sequence[tuple[str, Sequence[tuple[int, float]]]], width: int, baseline: float) -> None:
    colours = matplotlib.colormaps[BY_DEPTH]
    axes.axhline(100 * baseline, color=BASELINE, linewidth=0.9, linestyle=":", zorder=1)
    for number, (name, curve) in enumerate(curves):
        points = [*(point for point in curve if point[0] < width), (width, baseline)]
        x, y = zip(*((100 * kept / width, 100 * accuracy) for kept, accuracy in points), strict=True)
        colour = colours(0.92 * number / max(1, len(curves) - 1))
        style: dict[str, Any] = {
            "color": colour,
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.3,
        }
        axes.plot(x, y, label=name, **style)
    axes.set_title(f"{len(curves)} group{'s' if len(curves) > 1 else ''} of {width} channels", fontsize=9, loc="left")
    axes.set_xlabel("channels kept, %", fontsize=8.5)
    axes.set_xlim(0, 103)
    axes.tick_params(labelsize=8, labelleft=True)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    columns = 2 if max(len(name) for name, _ in curves) < 26 else 1
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=min(columns, len(curves)),
        fontsize=7.5,
        frameon=False,
        columnspacing=1.0,
    )
