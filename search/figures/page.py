"""The front as one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.config import Objective
from search.figures.charts import curves_chart, front_chart, hypervolume_chart, widths_chart
from search.figures.roles import caption
from search.figures.table import front_cells, front_table
from search.pareto import front
from search.results import State, TrialRecord

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 0; }
p { margin: .3rem 0; color: #555; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .6rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.error { text-align: left; white-space: normal; }
"""


def front_page(
    records: Sequence[TrialRecord],
    baseline: Mapping[str, Any],
    objectives: Sequence[Objective],
    *,
    title: str = "Front",
    widths: Mapping[str, int] | None = None,
) -> str:
    """Return a page with the front, the learning curves, the widths and the hypervolume over trials.

    Args:
        records: every trial.
        baseline: what the uncut network measured.
        objectives: what the front is of.
        title: heading, as text.
        widths: channels of every group before any cut; without it policies are compared with the widest one.

    Raises:
        SweepError: the baseline lacks an objective.
    """
    full = dict(widths) if widths is not None else _widest(records)
    members = front(records, objectives)
    sections = [
        _section("Front", "front", front_chart(records, baseline, objectives, full)),
        f'<div class="wide">{_front_rows(records, baseline, objectives)}</div>',
        _section("Learning curves", "curves", curves_chart(records, members)),
        _section("Channels kept on the front", "widths", widths_chart(members, full)) if members and full else "",
        _section("Hypervolume over trials", "hypervolume", hypervolume_chart(records, baseline, objectives)),
        _failures(records),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script></head>\n"
        f"<body><h1>{escape(title)}</h1>\n<p>{escape(caption(records, objectives))}</p>\n"
        f"{''.join(sections)}</body></html>\n"
    )


def _section(heading: str, name: str, figure: go.Figure) -> str:
    figure.update_layout(template="plotly_white", font={"size": 13}, margin={"l": 70, "r": 20, "t": 30, "b": 60})
    config = {"displaylogo": False, "responsive": True}
    chart = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return f"<h2>{heading}</h2>\n{chart}\n"


def _widest(records: Sequence[TrialRecord]) -> dict[str, int]:
    widest: dict[str, int] = {}
    for record in records:
        for name, width in record.policy.widths.items():
            widest[name] = max(width, widest.get(name, 0))
    return widest


def _front_rows(records: Sequence[TrialRecord], baseline: Mapping[str, Any], objectives: Sequence[Objective]) -> str:
    rows = front_table(records, baseline, objectives)
    if not rows:
        return "<p>No trial finished within the constraints.</p>"
    headers, cells = front_cells(rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>" for line in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _failures(records: Sequence[TrialRecord]) -> str:
    failed = [record for record in records if record.state is State.FAILED]
    if not failed:
        return ""
    rows = "".join(
        f'<tr><td>{record.number}</td><td class="error">{escape(record.error or "no reason given")}</td></tr>'
        for record in failed
    )
    head = "<tr><th>trial</th><th>error</th></tr>"
    return f"<h2>Failed trials</h2>\n<table><thead>{head}</thead><tbody>{rows}</tbody></table>\n"
