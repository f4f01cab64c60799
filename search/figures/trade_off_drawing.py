"""Accuracy over the first cost, drawn for the page and for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from search.config import Objective
from search.figures.colours import BASELINE, BEST, DOMINATED, FRONT, INFEASIBLE, QUIET, REPORTED, SHARES
from search.figures.frame import Frame, quiet
from search.figures.trade_off import MANY, Mark, TradeOff
from search.units import WORDS, percent, written

COLUMNS = 4
"""Of a picture's legend."""

LOOKS = {
    "dominated": (DOMINATED, "circle", "o"),
    "stopped": (DOMINATED, "circle-open", "o"),
    "infeasible": (INFEASIBLE, "circle-open", "o"),
    "incomplete": (DOMINATED, "square-open", "s"),
    "reported": (REPORTED, "x-thin-open", "x"),
}
"""Colour, and shape in a page and in a picture."""


def trade_off_chart(data: TradeOff) -> go.Figure:
    """Draw it for a page."""
    figure = go.Figure()
    size = {"size": 4, "opacity": 0.4} if data.crowded else {"size": 7}
    for kind, name, marks in data.others:
        colour, symbol, _ = LOOKS[kind]
        look = size if kind != "reported" else {"size": 8, "line": {"width": 2}}
        figure.add_trace(_trace(name, marks, {"color": colour, "symbol": symbol, **look}))
    if data.front:
        joined: dict[str, Any] = {"mode": "lines+markers", "line": {"shape": "hv", "color": FRONT, "width": 1.5}}
        figure.add_trace(_trace("front", data.front, _front_marker(data), **({} if data.third else joined)))
    star = {"color": BASELINE, "size": 14, "symbol": "star"}
    figure.add_trace(_trace("baseline", [data.baseline], star))
    if data.best is not None:
        ring = {"color": BEST, "size": 16, "symbol": "circle-open", "line_width": 2}
        name = f"best at ≤ 50 %: trial {data.best.number}"
        figure.add_scatter(x=[data.best.x], y=[data.best.y], mode="markers", marker=ring, name=name, hoverinfo="skip")
    figure.update_xaxes(title=data.axis, rangemode="tozero")
    figure.update_yaxes(title="accuracy on validation images, %", range=data.ends)
    figure.update_layout(height=540, legend={"orientation": "h", "y": -0.16})
    return figure


def _trace(name: str, marks: Sequence[Mark], marker: Mapping[str, Any], mode: str = "markers", **style: Any) -> Any:
    """Return points that can be hovered over; very many are drawn by the browser's graphics card."""
    kind = go.Scattergl if len(marks) > MANY else go.Scatter
    return kind(
        x=[round(mark.x, 3) for mark in marks],
        y=[round(mark.y, 3) for mark in marks],
        mode=mode,
        marker=marker,
        name=name,
        hovertext=[mark.text for mark in marks],
        hoverinfo="text",
        **style,
    )


def _front_marker(data: TradeOff) -> dict[str, Any]:
    if data.third is None:
        return {"color": FRONT, "size": 9}
    bar = {"title": {"text": f"{WORDS[data.third]},<br>% of baseline"}, "thickness": 14}
    edge = {"width": 1, "color": "black"}
    return {"color": list(data.shades), "colorscale": SHARES, "colorbar": bar, "size": 12, "line": edge}


# ── as a picture ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plot_trade_off(data: TradeOff) -> Figure:
    """Draw it as a picture. Save with `figure.savefig(path)`."""
    below = f"; {data.hidden} below the axis" if data.hidden else ""
    rows = ceil((len(data.others) + 2) / COLUMNS)
    frame = Frame(data.title, data.counts + below, 8.4, 4.95 + 0.22 * rows)
    axes = frame.axes(0.75, 0.4, 5.75 if data.third else 6.85, 3.95)
    _scales(axes, data)
    for kind, name, marks in data.others:
        colour, _, shape = LOOKS[kind]
        faded = data.crowded and kind != "reported"
        style: dict[str, Any] = {"s": 9, "alpha": 0.4, "linewidths": 0.8} if faded else {"s": 24, "linewidths": 1.2}
        if kind in ("stopped", "infeasible", "incomplete"):
            style |= {"facecolors": "none", "edgecolors": colour}
        else:
            style |= {"color": colour}
        x, y = _places(marks)
        axes.scatter(x, y, label=name, marker=shape, **style)
    if data.third is None:
        steps: dict[str, Any] = {"drawstyle": "steps-post", "marker": "o", "markersize": 5.5, "linewidth": 1.4}
        if data.front:
            axes.plot(*_places(data.front), color=FRONT, label="front", zorder=3, **steps)
    elif data.front:
        edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.6, "zorder": 3}
        points = axes.scatter(*_places(data.front), c=data.shades, cmap=SHARES.lower(), s=42, label="front", **edge)
        bar = frame.axes(7.4, 0.4, 0.14, 3.95)
        frame.figure.colorbar(points, cax=bar, label=f"{WORDS[data.third]}, % of the baseline's")
    axes.scatter([100.0], [data.baseline.y], marker="*", s=150, color=BASELINE, label="baseline", zorder=4)
    _ring(axes, data)
    if not data.front:
        axes.text(0.02, 0.94, "no trial is on the front", transform=axes.transAxes, fontsize=9, color=QUIET)
    frame.legend(0.75, 4.87, axes, columns=COLUMNS)
    return frame.figure


def _places(marks: Sequence[Mark]) -> tuple[list[float], list[float]]:
    return [mark.x for mark in marks], [mark.y for mark in marks]


def _scales(axes: Axes, data: TradeOff) -> None:
    """Accuracy to the left, its change to the right; the cost in percent below, absolute above."""
    quiet(axes)
    axes.set_xlim(0, max([mark.x for mark in data.trials] + [100.0]) * 1.04)
    axes.set_ylim(*data.ends)
    axes.set_xlabel(f"{WORDS[data.cost]}, % of the baseline's")
    axes.set_ylabel("accuracy on validation images, %")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= 100 else ""))

    def absolute(shares: Any) -> Any:
        return shares * data.full / 100

    def share(values: Any) -> Any:
        return values * 100 / data.full

    def change(accuracies: Any) -> Any:
        return accuracies - data.baseline.y

    def accuracy(changes: Any) -> Any:
        return changes + data.baseline.y

    above = axes.secondary_xaxis("top", functions=(absolute, share))
    above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(data.cost, value)))
    right = axes.secondary_yaxis("right", functions=(change, accuracy))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    right.set_ylabel("change against the baseline, points", color=QUIET, fontsize=8.5)
    for extra in (above, right):
        extra.tick_params(labelsize=8, colors=QUIET)
        extra.spines[:].set_color(QUIET)


def _ring(axes: Axes, data: TradeOff) -> None:
    """Ring the trial to take at half the cost; its label sits in the corner above the front."""
    if data.best is None:
        return
    x, y = data.best.x, data.best.y
    axes.axvline(50, color=BEST, linewidth=0.9, linestyle=":", zorder=1)
    axes.scatter([x], [y], s=120, facecolors="none", edgecolors=BEST, linewidths=1.6, zorder=5)
    axes.annotate(
        f"best at ≤ 50 %: trial {data.best.number}\n"
        f"{percent(y / 100, 2)} with {percent(x / 100)} of the {WORDS[data.cost]}",
        xy=(x, y),
        xytext=(0.02, 0.97),
        textcoords="axes fraction",
        va="top",
        fontsize=8.5,
        color=BEST,
        arrowprops={"arrowstyle": "-", "color": BEST, "linewidth": 0.9, "shrinkB": 6},
    )


def _tick(cost: Objective, value: float) -> str:
    """Write `5.00 M` as `5 M`."""
    number, _, unit = written(cost, value).partition(" ")
    return f"{float(number):g} {unit}".rstrip()
