"""All pictures of a sweep: each as a file, and all in one interactive page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from search.errors import SearchError
from search.figures.curves import curves, curves_chart, plot_curves
from search.figures.importance import importance, importance_charts, plot_importance
from search.figures.kept_channels import kept_channels, kept_channels_chart, plot_kept_channels
from search.figures.latencies import latencies, latencies_chart, plot_latencies
from search.figures.page import Section, charts_html, page, table_html
from search.figures.parallel import parallel, parallel_chart, plot_parallel, pointing
from search.figures.predictions import plot_predictions, predictions, predictions_chart
from search.figures.subject import Subject
from search.figures.table import front_cells, front_table, write_front_csv
from search.figures.trade_off import trade_off
from search.figures.trade_off_drawing import plot_trade_off, trade_off_chart
from search.figures.volume import plot_volume, volume, volume_charts
from search.inputs import Say, silent
from search.results import State
from search.units import WORDS, percent, written

TABLE, FRONT, REPORT, FIGURES = "front.csv", "front.png", "report.html", "figures"
MOST_ERRORS, NAMED = 50, 12


@dataclass(frozen=True)
class Picture:
    """One picture of a sweep.

    Attributes:
        name: of its file and its place in the page.
        heading: in the page.
        data: makes its plain data, which have a `caption`; raises SearchError with a sentence where there are none.
        plot: draws them for a file.
        charts: draw them for the page.
        layout: of the charts, see `charts_html`.
        script: for the page, run when it is drawn.
    """

    name: str
    heading: str
    data: Callable[[Subject], Any]
    plot: Callable[[Any], Figure]
    charts: Callable[[Any], Sequence[go.Figure]]
    layout: str = ""
    script: Callable[[Any], str] | None = None

    def path(self, folder: Path) -> Path:
        """Return its file in a sweep's folder."""
        return folder / FRONT if self.name == "front" else folder / FIGURES / f"{self.name}.png"


def _one(draw: Callable[[Any], go.Figure]) -> Callable[[Any], list[go.Figure]]:
    return lambda data: [draw(data)]


PICTURES = (
    Picture("front", "Accuracy and cost", trade_off, plot_trade_off, _one(trade_off_chart)),
    Picture("widths", "Channels kept", kept_channels, plot_kept_channels, _one(kept_channels_chart), "wide"),
    Picture("dimensions", "What was searched", parallel, plot_parallel, _one(parallel_chart), "wide", pointing),
    Picture("importance", "What matters", importance, plot_importance, importance_charts),
    Picture("curves", "Learning curves", curves, plot_curves, _one(curves_chart)),
    Picture("hypervolume", "Progress", volume, plot_volume, volume_charts, "pair"),
    Picture("surrogate", "Surrogate", predictions, plot_predictions, _one(predictions_chart), "square"),
    Picture("latency", "Latency", latencies, plot_latencies, _one(latencies_chart), "square"),
)


def write_report(subject: Subject, folder: Path, say: Say = silent) -> dict[str, Path]:
    """Write the front as a table, every picture as a file, and the page into a sweep's folder; return them by name.

    A picture for which there is nothing yet is left out, and the page says why. One that cannot be drawn is told of,
    and stops nothing.
    """
    (folder / FIGURES).mkdir(exist_ok=True)
    files = {"table": folder / TABLE}
    write_front_csv(files["table"], subject.records, subject.baseline, subject.objectives)
    sections = []
    for picture in PICTURES:
        path = picture.path(folder)
        path.unlink(missing_ok=True)
        section, data = _section(picture, subject, say)
        sections.append(section)
        if data is not None:
            with _attempt(f"picture {path.name}", say):
                picture.plot(data).savefig(path)
                files[picture.name] = path
    with _attempt(REPORT, say):
        (folder / REPORT).write_text(_page(subject, sections), encoding="utf-8")
        files["report"] = folder / REPORT
    return files


def report_page(subject: Subject, say: Say = silent) -> str:
    """Return the page alone: it needs no other file, and no network."""
    return _page(subject, [_section(picture, subject, say)[0] for picture in PICTURES])


@contextmanager
def _attempt(what: str, say: Say) -> Iterator[None]:
    """Say what went wrong instead of ending the sweep with it."""
    try:
        yield
    except Exception as error:  # whatever it is: the trials are worth more than a picture of them
        say(f"note: {what} is missing: {_reason(error)}")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _section(picture: Picture, subject: Subject, say: Say) -> tuple[Section, Any]:
    """Return a picture's part of the page, and its data; None where there are none."""
    data, caption, body = None, "", ""
    try:
        data = picture.data(subject)
        script = picture.script(data) if picture.script else None
        caption, body = data.caption, charts_html(picture.name, picture.charts(data), picture.layout, script)
    except SearchError as reason:
        caption = str(reason)
    except Exception as error:  # as above
        caption = f"This picture could not be drawn: {_reason(error)}"
        say(f"note: the page lacks '{picture.heading}': {_reason(error)}")
    if picture.name == "front":
        with _attempt("the table of the front", say):
            body += _front_table(subject) + (_reported(subject, data.note) if data is not None else "")
    return Section(picture.name, picture.heading, caption, body), data


def _page(subject: Subject, sections: Sequence[Section]) -> str:
    failed = _failures(subject)
    return page(subject.title or "Sweep", subject.counts, _facts(subject), [*sections, *([failed] if failed else [])])


def _facts(subject: Subject) -> list[tuple[str, str]]:
    """Return the numbers that a reader wants first."""
    facts = [
        (written(name, subject.baseline[name]), f"{WORDS[name]} of the baseline")
        for name in subject.objectives
        if subject.baseline.get(name) is not None
    ]
    facts.append((str(len(subject.front)), f"of {len(subject.records)} trials on the front"))
    best = subject.best_at_half
    if best is not None:
        share = percent(subject.share(best, subject.cost) / 100)
        what = f"best with at most half of the {WORDS[subject.cost]}: trial {best.number}, {share}"
        facts.append((percent(subject.accuracy(best) / 100, 2), what))
    return facts


def _front_table(subject: Subject) -> str:
    rows = front_table(subject.records, subject.baseline, subject.objectives)
    return table_html(*front_cells(rows)) if rows else "<p>No trial finished within the constraints.</p>\n"


def _reported(subject: Subject, note: str) -> str:
    if not note:
        return ""
    rows = [
        (point.method, f"{point.change:+.2f}".replace("-", "−"), f"{point.macs:.1f} %", point.source)
        for point in sorted(subject.reported, key=lambda point: (point.macs, point.method))
    ]
    table = table_html(["method", "change in points", "MACs kept", "source"], rows, texts=frozenset({3}))
    return f"<details><summary>What the papers report</summary><p>{escape(note)}</p>{table}</details>\n"


def _failures(subject: Subject) -> Section | None:
    """Return the reasons why trials failed, the most frequent first."""
    trials: dict[str, list[int]] = {}
    for record in subject.records:
        if record.state is State.FAILED:
            trials.setdefault(record.error or "no reason given", []).append(record.number)
    if not trials:
        return None
    ordered = sorted(trials.items(), key=lambda item: -len(item[1]))
    rows = [(str(len(numbers)), _named(numbers), error) for error, numbers in ordered[:MOST_ERRORS]]
    left = len(ordered) - MOST_ERRORS
    caption = "Trials that failed, by reason; the others went on." + (
        f" {left} more reasons are left out." * (left > 0)
    )
    return Section(
        "failures", "Failed trials", caption, table_html(["failed", "trials", "error"], rows, texts=frozenset({1, 2}))
    )


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED]))
    return shown if len(numbers) <= NAMED else f"{shown} and {len(numbers) - NAMED} more"
