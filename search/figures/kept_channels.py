"""The widths of the front's policies, one row a trial, one column a group.

In the manner of Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, Figure S4.
"""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go
from matplotlib.figure import Figure

from search.figures.colours import SHARES
from search.figures.frame import Frame
from search.figures.subject import NothingToDrawError, Subject, some_of
from search.results import TrialRecord
from search.units import WORDS

MOST_ROWS = 60
LABELLED = 64
"""From so many columns on not every one bears its name."""


@dataclass(frozen=True)
class Kept:
    """Channels that policies keep.

    Attributes:
        groups: those that some trial of the sweep cuts, in the network's order, with their full widths.
        numbers: of the trials, cheapest first.
        costs: in percent of the baseline's.
        accuracies: in percent.
        channels: kept, `[trials, groups]`.
        texts: what hovering tells, `[trials, groups]`.
        whole: how many groups no trial cuts.
        members: how many trials are on the front.
    """

    title: str
    cost: str
    groups: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...]
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    channels: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    whole: int
    members: int

    @property
    def shares(self) -> list[list[float]]:
        """Channels kept in percent, `[trials, groups]`."""
        return [[100 * kept / full for kept, (_, full) in zip(row, self.groups, strict=True)] for row in self.channels]

    @property
    def caption(self) -> str:
        """How to read it."""
        parts = [
            "A row is a policy of the front, the cheapest on top; a column is a channel group, from input to output; "
            "dark is cut, bright is kept."
        ]
        parts += (
            [f"{len(self.numbers)} of {self.members} policies are shown."] if len(self.numbers) < self.members else []
        )
        one = self.whole == 1
        parts += [
            f"{self.whole} group{'' if one else 's'} that no trial cuts {'is' if one else 'are'} left out."
        ] * bool(self.whole)
        return " ".join(parts)


def kept_channels(subject: Subject) -> Kept:
    """Return what the front's policies keep.

    Raises:
        NothingToDrawError: no trial is on the front, or none cuts a group.
        SweepError: the baseline lacks the cost.
    """
    if not subject.front:
        raise NothingToDrawError("No trial is on the front, so there are no widths to compare.")
    cut = {
        name
        for record in subject.records
        for name, width in record.policy.widths.items()
        if width < subject.widths.get(name, 0)
    }
    groups = tuple((name, full) for name, full in subject.widths.items() if name in cut)
    if not groups:
        raise NothingToDrawError("No trial cuts a group.")
    shown = some_of(subject.front, MOST_ROWS)
    return Kept(
        title=subject.titled("channels kept on the front"),
        cost=WORDS[subject.cost],
        groups=groups,
        numbers=tuple(record.number for record in shown),
        costs=tuple(subject.share(record, subject.cost) for record in shown),
        accuracies=tuple(subject.accuracy(record) for record in shown),
        channels=tuple(tuple(record.policy.widths.get(name, full) for name, full in groups) for record in shown),
        texts=tuple(tuple(_text(subject, record, name, full) for name, full in groups) for record in shown),
        whole=len(subject.widths) - len(groups),
        members=len(subject.front),
    )


def _text(subject: Subject, record: TrialRecord, name: str, full: int) -> str:
    kept, criteria = record.policy.widths.get(name, full), record.policy.criteria
    by = f" by {criteria[name].name}" if name in criteria else ""
    lines = [f"<b>{name}</b> keeps {kept} of {full} channels{by} ({100 * kept / full:.0f} %)", *subject.words(record)]
    return "<br>".join(lines)


def kept_channels_chart(data: Kept) -> go.Figure:
    """Draw it for a page."""
    rows = [
        f"{cost:.0f} %  ·  {accuracy:.2f} %  ·  trial {number}"
        for number, cost, accuracy in zip(data.numbers, data.costs, data.accuracies, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[round(share, 1) for share in row] for row in data.shares],
            x=[f"{name} ({full})" for name, full in data.groups],
            y=rows,
            text=data.channels,
            texttemplate="%{text}" if len(data.groups) <= 32 else None,
            textfont={"size": 10},
            hovertext=data.texts,
            hoverinfo="text",
            zmin=0,
            zmax=100,
            colorscale=SHARES,
            colorbar={"title": {"text": "kept, %"}, "thickness": 14},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(type="category", tickangle=-90, automargin=True, tickfont={"size": 10}, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True, tickfont={"size": 11}, showgrid=False)
    figure.update_yaxes(title={"text": f"{data.cost}  ·  accuracy  ·  trial", "font": {"size": 11}})
    longest = max(len(name) for name, _ in data.groups)
    figure.update_layout(height=130 + 7 * longest + 24 * max(len(rows), 4))
    return figure


def plot_kept_channels(data: Kept) -> Figure:
    """Draw it as a picture: cells of one size, with the number of channels where it can be read."""
    rows, columns = len(data.numbers), len(data.groups)
    cell = min(0.5, max(0.1, 13 / columns))
    labels = [f"{name} ({full})" for name, full in data.groups]
    below = 0.2 + 0.056 * max(map(len, labels))
    step = 0.24 if rows <= 30 else 0.17
    across, down = max(cell * columns, 3.0), step * rows
    frame = Frame(data.title, data.caption, across + 3.75, down + below + 0.4)
    axes = frame.axes(1.6, 0.35, across, down)
    image = axes.imshow(data.shares, cmap=SHARES.lower(), vmin=0, vmax=100, aspect="auto", interpolation="none")
    every = -(-columns // LABELLED)
    axes.set_xticks(range(0, columns, every), labels[::every], rotation=90, fontsize=7)
    names = [f"trial {number}   {cost:.1f} %" for number, cost in zip(data.numbers, data.costs, strict=True)]
    axes.set_yticks(range(rows), names, fontsize=8)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(rows), [f"{accuracy:.2f} %" for accuracy in data.accuracies], fontsize=8)
    for ends in (axes, beside):
        ends.tick_params(length=0)
        ends.spines[:].set_visible(False)
    frame.sheet.figure.text(*_above(frame, 1.55), f"{data.cost} kept", fontsize=8, ha="right")
    frame.sheet.figure.text(*_above(frame, 1.65 + across), "accuracy", fontsize=8)
    axes.set_xticks([place - 0.5 for place in range(1, columns)], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    if cell >= 0.2 and rows <= 40:
        for row, (kept, shares) in enumerate(zip(data.channels, data.shares, strict=True)):
            for column, (count, share) in enumerate(zip(kept, shares, strict=True)):
                colour = "white" if share < 55 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=6.5, color=colour)
    bar = frame.axes(across + 2.6, 0.35, 0.14, min(max(down, 1.2), 3.0))
    frame.figure.colorbar(image, cax=bar, label="channels kept, %")
    return frame.figure


def _above(frame: Frame, left: float) -> tuple[float, float]:
    return left / frame.sheet.width, 1 - (frame.top + 0.28) / frame.sheet.height
