"""Every searched dimension as an axis, every trial as a line through its values, coloured by accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.figures.colours import BEST, QUIET, SHARES
from search.figures.dimensions import Dimension, dimensions
from search.figures.frame import Frame
from search.figures.subject import NothingToDrawError, Subject, some_of
from search.units import WORDS

MOST_LINES, SHADES = 400, 12
APART = 0.12
"""Below a number's axis lie the trials for which it does not exist."""


@dataclass(frozen=True)
class Axis:
    """One dimension.

    Attributes:
        places: of the trials, 0 (bottom) to 1.
        ticks: places with what is written there.
    """

    label: str
    places: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Parallel:
    """Trials as lines through axes; the last axes are costs and accuracy.

    Attributes:
        accuracies: in percent, by line.
        on_front: by line.
        texts: what hovering tells, by line.
        ends: of the colours; trials that learned nothing have the lowest.
        finished: how many trials could be drawn.
    """

    title: str
    axes: tuple[Axis, ...]
    accuracies: tuple[float, ...]
    on_front: tuple[bool, ...]
    texts: tuple[str, ...]
    ends: tuple[float, float]
    finished: int

    @property
    def slope(self) -> int:
        """How steep the axes' names are written, in degrees."""
        return 18 if len(self.axes) <= 10 else 40

    @property
    def caption(self) -> str:
        """How to read it."""
        drawn = len(self.accuracies)
        less = f" {drawn} of {self.finished} trials are drawn." if drawn < self.finished else ""
        return (
            "A line is a finished trial, through what it chose; bright is accurate. Widths are the mean part of the "
            f"channels that groups of one full width keep.{less}"
        )


def parallel(subject: Subject) -> Parallel:
    """Return the finished trials along what was searched.

    Raises:
        NothingToDrawError: fewer than two trials finished, or they do not differ.
        SweepError: the baseline lacks a cost.
    """
    finished = subject.finished
    if len(finished) < 2:
        raise NothingToDrawError("Lines can be compared as soon as two trials have finished.")
    members = [record for record in finished if record.number in subject.front_numbers]
    others = [record for record in finished if record.number not in subject.front_numbers]
    shown = [*some_of(others, MOST_LINES), *some_of(members, MOST_LINES)]  # the front is drawn last
    costs = [subject.share(record, subject.cost) for record in shown]
    searched = [each for each in dimensions(subject, shown) if not _repeats(each, costs)]
    if not searched:
        raise NothingToDrawError("All trials that finished have the same values.")
    accuracies = tuple(subject.accuracy(record) for record in shown)
    measured = [
        Dimension(name, f"{WORDS[name]}, %", tuple(subject.share(record, name) for record in shown))
        for name in subject.costs
    ]
    measured.append(Dimension("accuracy", "accuracy, %", accuracies))
    axes = [*(axis_of(each) for each in searched), *(axis_of(each, whole=False) for each in measured)]
    low, high = float(np.percentile(accuracies, 10)), max(accuracies)
    return Parallel(
        title=subject.titled("what was searched"),
        axes=tuple(axes),
        accuracies=accuracies,
        on_front=tuple(record.number in subject.front_numbers for record in shown),
        texts=tuple("<br>".join(subject.words(record)) for record in shown),
        ends=(low if low < high else high - 1, high),
        finished=len(finished),
    )


def _repeats(dimension: Dimension, costs: Sequence[float]) -> bool:
    """Return whether a dimension is the budget of the cost, which has an axis: it is met to a point or two."""
    if dimension.name != "budget":
        return False
    return all(
        value is None or abs(float(value) - cost) < 3 for value, cost in zip(dimension.values, costs, strict=True)
    )


def axis_of(dimension: Dimension, *, whole: bool = True) -> Axis:
    """Return where trials lie on a dimension's axis.

    Args:
        dimension: with a value for each trial.
        whole: whether few different numbers are choices.
    """
    categories = dimension.categories
    if categories and (whole or None in dimension.values or len(set(dimension.values)) == 1):
        places = {value: (place + 0.5) / len(categories) for place, value in enumerate(categories)}
        ticks = tuple((place, _written(value)) for value, place in places.items())
        return Axis(dimension.label, tuple(places[value] for value in dimension.values), ticks)
    return _scale(dimension)


def _scale(dimension: Dimension) -> Axis:
    known = [float(value) for value in dimension.values if isinstance(value, float) and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    bottom = APART if len(known) < len(dimension.values) else 0.0

    def place(value: float) -> float:
        by_log = dimension.logarithmic
        part = math.log(value / low) / math.log(high / low) if by_log else (value - low) / (high - low)
        return bottom + (1 - bottom) * part

    ticks = [(place(value), f"{value:.3g}") for value in _round_numbers(low, high, logarithmic=dimension.logarithmic)]
    ticks += [(0.0, _written(None))] if bottom else []
    exists = [isinstance(value, float) and math.isfinite(value) for value in dimension.values]
    places = [place(float(value or 0)) if there else 0.0 for value, there in zip(dimension.values, exists, strict=True)]
    return Axis(dimension.label, tuple(places), tuple(ticks))


def _round_numbers(low: float, high: float, *, logarithmic: bool) -> list[float]:
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    else:
        found = [float(value) for value in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) > 1 else [low, high]


def _written(value: float | str | None) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else value


# ── as a page's chart ────────────────────────────────────────────────────────────────────────────────────────────────


def parallel_chart(data: Parallel) -> go.Figure:
    """Draw it for a page: lines in steps of the accuracy, so that a few traces hold all of them."""
    figure = go.Figure()
    (low, high), heights = data.ends, _heights(data)
    shades = np.clip((np.array(data.accuracies) - low) / (high - low), 0, 1)
    step = np.minimum((shades * SHADES).astype(int), SHADES - 1)
    for shade in sorted(set(step.tolist())):
        for on_front in (False, True):
            lines = [line for line in np.flatnonzero(step == shade).tolist() if data.on_front[line] is on_front]
            if lines:
                figure.add_trace(_lines(data, heights, lines, (shade + 0.5) / SHADES, on_front=on_front))
    marker = {"color": [low, high], "colorscale": SHARES, "cmin": low, "cmax": high, "showscale": True, "size": 0.1}
    marker |= {"colorbar": {"title": {"text": "accuracy, %"}, "thickness": 14}}
    figure.add_scatter(x=[0, 0], y=[0, 0], mode="markers", marker=marker, hoverinfo="skip")
    figure.add_scatter(x=[], y=[], mode="lines", line={"color": BEST, "width": 3.5}, hoverinfo="skip")  # see `pointing`
    for place, axis in enumerate(data.axes):
        figure.add_shape(type="line", x0=place, x1=place, y0=-0.03, y1=1.03, line={"color": QUIET, "width": 1})
        above = {"x": place, "y": 1.05, "xanchor": "left", "yanchor": "bottom", "textangle": -data.slope}
        figure.add_annotation(text=axis.label, font={"size": 12}, showarrow=False, **above)
        for height, text in axis.ticks:
            tick = {"x": place, "y": height, "xanchor": "left", "xshift": 2, "showarrow": False, "borderpad": 0}
            figure.add_annotation(text=text, font={"size": 10}, bgcolor="rgba(255,255,255,0.7)", **tick)
    room = 0.5 if len(data.axes[-1].label) > 5 else 0.3
    figure.update_xaxes(visible=False, range=[-0.15, len(data.axes) - 1 + room], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.05, 1.05], fixedrange=True)
    figure.update_layout(height=470, showlegend=False, margin={"l": 20, "r": 20, "t": 90, "b": 20}, hovermode="closest")
    return figure


def _lines(
    data: Parallel, heights: Sequence[Sequence[float]], lines: Sequence[int], shade: float, *, on_front: bool
) -> go.Scatter:
    """Return some lines as one, with gaps."""
    count, colour = len(data.axes), matplotlib.colormaps[SHARES.lower()](shade)
    faint = max(0.15, min(0.7, 60 / len(data.accuracies)))
    return go.Scatter(
        x=[*range(count), None] * len(lines),
        y=[height for line in lines for height in (*heights[line], None)],
        customdata=[line for line in lines for _ in range(count + 1)],
        hovertext=[data.texts[line] for line in lines for _ in range(count + 1)],
        hoverinfo="text",
        mode="lines",
        line={"color": matplotlib.colors.to_hex(colour), "width": 2.2 if on_front else 1.1},
        opacity=1 if on_front else faint,
    )


def pointing(data: Parallel) -> str:
    """Return the script that brings the line under the pointer to the top; `{plot_id}` stands for the chart's place."""
    return f"bringToTop(document.getElementById('{{plot_id}}'), {json.dumps(_heights(data))});"


def _heights(data: Parallel) -> list[list[float]]:
    """Return where each line meets each axis; lines of one choice are spread a little, so that each can be followed."""
    return [[round(height, 4) for height in line] for line in zip(*map(_spread, data.axes), strict=True)]


# ── as a picture ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plot_parallel(data: Parallel) -> Figure:
    """Draw it as a picture."""
    count = len(data.axes)
    across = max(6.0, 1.05 * (count - 1))
    frame = Frame(data.title, data.caption, across + 2.2, 4.4)
    axes = frame.axes(0.7, 0.6, across, 3.6)
    colours, (low, high) = matplotlib.colormaps[SHARES.lower()], data.ends
    shades = np.clip((np.array(data.accuracies) - low) / (high - low), 0, 1)
    order = np.argsort(np.array(data.on_front) + shades / 2, kind="stable")
    lines = [np.column_stack([np.arange(count), row]) for row in np.array(_heights(data))[order]]
    front = np.array(data.on_front)[order]
    alpha = np.where(front, 1.0, max(0.08, min(0.65, 40 / len(lines))))
    collection = LineCollection(
        lines,
        colors=[(*colours(shade)[:3], a) for shade, a in zip(shades[order], alpha, strict=True)],
        linewidths=np.where(front, 1.8, 1.0),
    )
    axes.add_collection(collection)
    axes.set_xlim(-0.03, count - 1 + 0.03)
    axes.set_ylim(-0.03, 1.03)
    for place, axis in enumerate(data.axes):
        axes.axvline(place, color=QUIET, linewidth=0.9, zorder=3)
        for height, text in axis.ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            axes.text(place + 0.03, height, text, fontsize=7.5, va="center", zorder=4, bbox=box)
        axes.text(place, 1.07, axis.label, fontsize=8.5, rotation=data.slope, ha="left", va="bottom")
    axes.set_axis_off()
    bar = frame.axes(across + 1.3, 0.8, 0.14, 3.0)
    shown = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), colours)
    frame.figure.colorbar(
        shown, cax=bar, label="accuracy, %", extend="min" if min(data.accuracies) < low else "neither"
    )
    return frame.figure


def _spread(axis: Axis) -> Sequence[float]:
    """Move lines of one place apart a little, the same way every time."""
    heights = {place for place, _ in axis.ticks}
    if not set(axis.places) <= heights:
        return axis.places
    room = 0.35 / max(len(heights), 2)
    offsets = (np.arange(len(axis.places)) * 0.618034) % 1 - 0.5  # the golden ratio fills the room evenly
    return [place + room * float(offset) for place, offset in zip(axis.places, offsets, strict=True)]
