"""The interactive charts of a sweep's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from search.config import Objective
from search.figures.colours import BASELINE, BEST, DOMINATED, FRONT, INFEASIBLE, SHARES
from search.figures.roles import accuracy_axis, best_at_half, dominated, infeasible
from search.pareto import baseline_value, front, hypervolume_history, value_of
from search.results import State, TrialRecord
from search.units import WORDS, percent, written

SHOWN_GROUPS = 16


def front_chart(
    records: Sequence[TrialRecord],
    baseline: Mapping[str, Any],
    objectives: Sequence[Objective],
    full: Mapping[str, int],
) -> go.Figure:
    """Accuracy over the first cost; a third objective colours the front. Hovering names a trial and its policy."""
    cost, *others = [name for name in objectives if name != "accuracy"]
    members, best = front(records, objectives), best_at_half(records, objectives, cost, baseline)
    marks: list[tuple[str, Sequence[TrialRecord], dict[str, Any]]] = [
        ("dominated", dominated(records, objectives), {"color": DOMINATED, "size": 7}),
        ("breaks a constraint", infeasible(records, [cost]), {"color": INFEASIBLE, "size": 8, "symbol": "circle-open"}),
        ("front", members, _front_marks(members, others, baseline)),
        (
            "best at ≤ 50 %",
            [best] if best else [],
            {"color": BEST, "size": 16, "symbol": "circle-open", "line_width": 2},
        ),
    ]
    figure = go.Figure()
    for name, shown, marker in marks:
        stepped = name == "front" and not others
        figure.add_scatter(
            x=[_percent_of(record, cost, baseline) for record in shown],
            y=[100 * (value_of(record, "accuracy") or 0.0) for record in shown],
            mode="lines+markers" if stepped else "markers",
            line={"shape": "hv", "color": FRONT, "width": 1.5},
            marker=marker,
            name=name,
            hovertext=[_described(record, baseline, full) for record in shown],
            hoverinfo="skip" if name.startswith("best") else "text",
        )
    star = {"color": BASELINE, "size": 14, "symbol": "star"}
    full_cost, accuracy = baseline_value(baseline, cost), baseline_value(baseline, "accuracy")
    text = f"baseline<br>accuracy {percent(accuracy, 2)}<br>{WORDS[cost]} {written(cost, full_cost)}"
    figure.add_scatter(
        x=[100], y=[100 * accuracy], mode="markers", marker=star, name="baseline", hovertext=[text], hoverinfo="text"
    )
    figure.update_xaxes(title=f"{WORDS[cost]}, % of the baseline's {written(cost, full_cost)}", rangemode="tozero")
    shown = [record for _, some, _ in marks for record in some]
    figure.update_yaxes(title="accuracy on validation images, %", range=accuracy_axis(shown, members, accuracy))
    figure.update_layout(height=520, legend={"orientation": "h", "y": -0.2}, hoverlabel={"align": "left"})
    return figure


def _front_marks(
    members: Sequence[TrialRecord], others: Sequence[Objective], baseline: Mapping[str, Any]
) -> dict[str, Any]:
    if not others:
        return {"color": FRONT, "size": 9}
    shares = [_percent_of(record, others[0], baseline) for record in members]
    bar = {"title": {"text": f"{WORDS[others[0]]},<br>% of baseline"}}
    return {"color": shares, "colorscale": SHARES, "colorbar": bar, "size": 12, "line": {"width": 1, "color": "black"}}


def _percent_of(record: TrialRecord, cost: Objective, baseline: Mapping[str, Any]) -> float:
    return 100 * (value_of(record, cost) or 0.0) / baseline_value(baseline, cost)


def _described(record: TrialRecord, baseline: Mapping[str, Any], full: Mapping[str, int]) -> str:
    metrics, policy = record.metrics, record.policy
    assert metrics is not None
    lines = [
        f"<b>trial {record.number}</b> after {metrics.epoch} epochs",
        f"accuracy {percent(metrics.accuracy, 2)}",
        f"MACs {written('macs', metrics.macs)} ({percent(metrics.macs / baseline_value(baseline, 'macs'))})",
        f"parameters {written('params', metrics.params)} "
        f"({percent(metrics.params / baseline_value(baseline, 'params'))})",
    ]
    if metrics.latency_ms is not None:
        lines.append(f"latency {written('latency_ms', metrics.latency_ms)}")
    lines.append(f"criterion {record.criterion}")
    if "allocation" in record.params:
        lines.append(f"allocation {record.params['allocation']}")
    if policy.auxiliary is not None:
        lines.append(f"auxiliary losses at {policy.auxiliary}")
    by = {name: f" by {criterion.name}" for name, criterion in policy.criteria.items()}
    kept = [f"{name} {percent(policy.widths.get(name, w) / w, 0)}{by.get(name, '')}" for name, w in full.items()]
    lines += ["kept:", *("  ".join(kept[start : start + 2]) for start in range(0, min(len(kept), SHOWN_GROUPS), 2))]
    lines += [f"and {len(kept) - SHOWN_GROUPS} more groups"] if len(kept) > SHOWN_GROUPS else []
    return "<br>".join(lines)


def curves_chart(records: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> go.Figure:
    """Accuracy by epoch: one line a trial, those of the front on top."""
    numbers = {record.number for record in members}
    figure = go.Figure()
    for on_front, name, colour in ((False, "other trials", DOMINATED), (True, "front", FRONT)):
        shown = [record for record in records if record.history and (record.number in numbers) is on_front]
        for index, record in enumerate(shown):
            figure.add_scatter(
                x=[metrics.epoch for metrics in record.history],
                y=[100 * metrics.accuracy for metrics in record.history],
                mode="lines+markers",
                line={"color": colour, "width": 1.8 if on_front else 1, "dash": _dash(record)},
                marker={"size": 5 if on_front else 3},
                opacity=1 if on_front else 0.45,
                name=name,
                legendgroup=name,
                showlegend=index == 0,
                hovertemplate=f"trial {record.number}, {record.state.value}<br>epoch %{{x}}: %{{y:.2f}} %<extra/>",
            )
    epochs = max((metrics.epoch for record in records for metrics in record.history), default=1)
    figure.update_xaxes(
        title="epochs of fine-tuning (0: cut, batch norm recalibrated)",
        rangemode="tozero",
        dtick=math.ceil(epochs / 10),
    )
    figure.update_yaxes(title="accuracy on validation images, %")
    figure.update_layout(height=420, legend={"orientation": "h", "y": -0.25}, hovermode="closest")
    return figure


def _dash(record: TrialRecord) -> str:
    return "dot" if record.state is State.STOPPED else "solid"


def widths_chart(members: Sequence[TrialRecord], full: Mapping[str, int]) -> go.Figure:
    """Part of each group's channels that each policy of the front keeps, cheapest policy on top."""
    kept = [[record.policy.widths.get(name, width) for name, width in full.items()] for record in members]
    shares = [[100 * keep / width for keep, width in zip(row, full.values(), strict=True)] for row in kept]
    text = [[f"{keep}/{width}" for keep, width in zip(row, full.values(), strict=True)] for row in kept]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=list(full),
            y=[f"trial {record.number}" for record in members],
            text=text,
            texttemplate="%{text}" if len(full) <= SHOWN_GROUPS else None,
            zmin=0,
            zmax=100,
            colorscale=SHARES,
            colorbar={"title": {"text": "kept, %"}},
            hovertemplate="%{y}, %{x}<br>%{text} channels, %{z:.0f} %<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(type="category", tickangle=-45, automargin=True)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.update_layout(height=220 + 26 * len(members))
    return figure


def hypervolume_chart(
    records: Sequence[TrialRecord], baseline: Mapping[str, Any], objectives: Sequence[Objective]
) -> go.Figure:
    """The hypervolume after each trial: the part of all trade-offs that the front dominates."""
    values = hypervolume_history(records, objectives, baseline)
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=values,
        mode="lines",
        line={"shape": "hv", "color": FRONT},
        hovertemplate="after %{x} trials: %{y:.4f}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(
        title="trials, in the order of proposal", rangemode="tozero", dtick=math.ceil(len(values) / 12) or 1
    )
    figure.update_yaxes(title="hypervolume, 0 to 1")
    figure.update_layout(height=340)
    return figure
