"""The front as picture, page and table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pruning import CriterionSpec, ModelSpec, Policy
from search.errors import SweepError
from search.figures import front_cells, front_markdown, front_page, front_table, plot_front, write_front_csv
from search.pareto import front
from search.results import Metrics, State, TrialRecord

WIDTHS = {"layer1.0.conv1": 16, "layer2.0.conv1": 32}
BASELINE = {"accuracy": 0.9, "loss": 0.3, "macs": 40_000_000, "params": 270_000, "latency_ms": 10.0}
TWO, THREE = ("accuracy", "macs"), ("accuracy", "macs", "latency_ms")


def trial(number, accuracy=0.8, share=0.5, state=State.FINISHED, **more):
    macs, params = int(share * BASELINE["macs"]), int(share * BASELINE["params"])
    history = [Metrics(e, accuracy - 0.1 * (1 - e), 0.4, macs, params, 10 * share, 5.0 * e) for e in range(2)]
    policy = Policy(
        model=ModelSpec(name="resnet20"),
        network="0" * 16,
        widths={"layer1.0.conv1": max(1, int(16 * share))},
        criterion=CriterionSpec(name="fpgm"),
    )
    return TrialRecord(number, state, {"allocation": "searched"}, policy, tuple(history), **more)


def sweep():
    """Five finished trials of which 0, 2 and 4 are the front, an infeasible one, a stopped one and a failed one."""
    failed = TrialRecord(7, State.FAILED, {}, trial(7).policy, error="fine-tuning: loss <nan> after epoch 2")
    return [
        trial(0, 0.70, 0.2),
        trial(1, 0.65, 0.4),
        trial(2, 0.85, 0.5),
        trial(3, 0.80, 0.7),
        trial(4, 0.91, 0.8),
        trial(5, 0.99, 0.1, feasible=False),
        trial(6, 0.10, 0.3, state=State.STOPPED),
        failed,
    ]


# ── table ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_has_a_row_for_each_trial_of_the_front_with_shares_of_the_baseline():
    rows = front_table(sweep(), BASELINE, TWO)
    assert [row["trial"] for row in rows] == [record.number for record in front(sweep(), TWO)] == [0, 2, 4]
    row = rows[1]
    assert row["macs_share"] == pytest.approx(0.5)
    assert row["params_share"] == pytest.approx(0.5)
    assert row["accuracy_change"] == pytest.approx(-0.05)
    assert (row["criterion"], row["allocation"], row["epochs"]) == ("fpgm", "searched", 1)


def test_the_csv_holds_the_rows_and_has_a_header_even_without_any(tmp_path):
    path = tmp_path / "front.csv"
    write_front_csv(path, sweep(), BASELINE, TWO)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [int(row["trial"]) for row in rows] == [0, 2, 4]
    assert float(rows[2]["accuracy"]) == 0.91
    write_front_csv(path, [], BASELINE, TWO)
    assert path.read_text().startswith("trial,accuracy,")
    assert list(csv.DictReader(io.StringIO(path.read_text()))) == []


def test_cells_have_units_and_columns_that_nobody_fills_are_left_out():
    headers, cells = front_cells(front_table(sweep(), BASELINE, TWO))
    assert dict(zip(headers, cells[1], strict=True)) == {
        "trial": "2",
        "accuracy": "85.00 %",
        "change in points": "−5.00",
        "MACs": "20.0 M",
        "MACs kept": "50.0 %",
        "parameters": "135 k",
        "parameters kept": "50.0 %",
        "latency": "5 ms",
        "criterion": "fpgm",
        "allocation": "searched",
    }
    rows = [{**row, "latency_ms": None} for row in front_table(sweep(), BASELINE, TWO)]
    assert "latency" not in front_cells(rows)[0]


def test_the_markdown_table_has_as_many_cells_in_every_line():
    rows = front_table(sweep(), BASELINE, TWO)
    rows[0]["criterion"] = "a|b"
    lines = front_markdown(rows).splitlines()
    assert len(lines) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}
    assert front_markdown([]) == "No trial finished within the constraints.\n"


# ── picture ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(figure):
    figure.savefig(io.BytesIO())
    return figure


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_picture_shows_front_dominated_infeasible_and_baseline_where_they_are():
    figure = drawn(plot_front(sweep(), BASELINE, TWO, title="resnet20"))
    axes = figure.axes[0]
    assert legend(figure) == ["dominated", "breaks a constraint", "front", "baseline"]
    line = next(line for line in axes.lines if line.get_label() == "front")
    assert line.get_xydata().tolist() == [pytest.approx(place) for place in ([20, 70], [50, 85], [80, 91])]
    places = {found.get_label(): found.get_offsets().tolist() for found in axes.collections}
    assert places["dominated"] == [pytest.approx([40, 65]), pytest.approx([70, 80])]
    assert places["breaks a constraint"] == [pytest.approx([10, 99])]
    assert places["baseline"] == [pytest.approx([100, 90])]
    hollow = next(found for found in axes.collections if found.get_label() == "breaks a constraint")
    assert hollow.get_facecolor().size == 0


def test_the_picture_names_the_best_trial_at_half_the_cost_and_counts_the_others():
    figure = drawn(plot_front(sweep(), BASELINE, TWO))
    axes = figure.axes[0]
    assert [note.get_text() for note in axes.texts] == ["best at ≤ 50 %: trial 2\n85.00 % with 50.0 % of the MACs"]
    counts = "8 trials: 6 finished, 1 of them broke a constraint, 1 stopped early, 1 failed; front of 3"
    assert axes.get_title(loc="left") == counts


def test_a_trial_that_learned_nothing_does_not_squeeze_the_front_and_is_counted():
    records = [trial(0, 0.88, 0.3), trial(1, 0.9, 0.6), trial(2, 0.1, 0.7)]
    figure = drawn(plot_front(records, BASELINE, TWO))
    low, _ = figure.axes[0].get_ylim()
    assert 80 < low < 88
    assert "1 below the axis" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("records", "objectives"),
    [
        (sweep(), TWO),
        (sweep(), THREE),
        (sweep(), ("latency_ms", "accuracy")),
        ([], ("params", "accuracy")),
        ([trial(0, 0.9999, 0.01)], TWO),
        ([trial(0, 0.5, 1.4), trial(1, 0.91, 1.0)], TWO),
    ],
)
def test_no_text_is_clipped_or_lies_on_another(records, objectives):
    figure = plot_front(records, BASELINE, objectives, title="resnet20 on digits, 24 trials with three criteria")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    words = [*figure.texts, *axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    words = [text for text in [*words, *figure.legends[0].get_texts()] if text.get_text()]
    for text in words:
        box = Text.get_window_extent(text)
        assert Bbox.intersection(box, figure.bbox).bounds == pytest.approx(box.bounds), text
    for one, other in itertools.combinations(words, 2):
        assert not Text.get_window_extent(one).overlaps(Text.get_window_extent(other)), (one, other)
    low, high = axes.get_xlim()
    assert low == 0 < 100 < high


def test_a_third_objective_colours_the_front():
    figure = drawn(plot_front(sweep(), BASELINE, THREE))
    points = next(found for found in figure.axes[0].collections if found.get_label() == "front")
    assert points.get_array().tolist() == pytest.approx([20, 50, 80])
    assert figure.axes[1].get_ylabel() == "latency, % of the baseline's"


def test_an_empty_front_is_said_and_a_baseline_without_the_objective_is_refused():
    figure = drawn(plot_front([], BASELINE, TWO))
    assert [note.get_text() for note in figure.axes[0].texts] == ["no trial finished within the constraints"]
    with pytest.raises(SweepError, match="baseline: expected a positive latency_ms, got None"):
        plot_front(sweep(), {"accuracy": 0.9, "macs": 1}, ("accuracy", "latency_ms"))


def test_drawing_opens_no_window_and_changes_no_setting():
    before = dict(matplotlib.rcParams)
    drawn(plot_front(sweep(), BASELINE, TWO))
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs


# ── page ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Page(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.addresses, self.opened, self.texts, self.ids = [], [], [], []
        self.scripts = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"
        if tag not in ("meta", "br", "link", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if self.opened and self.opened[-1] not in ("script", "style"):
            self.texts.append(data)


def charts(html):
    """The traces of each chart by its place's id."""
    found = {}
    for start in re.finditer(r'Plotly\.newPlot\(\s*"(\w+)",\s*', html):
        found[start[1]], _ = json.JSONDecoder().raw_decode(html, start.end())
    return found


@pytest.fixture(scope="module")
def page():
    return front_page(sweep(), BASELINE, TWO, title="resnet20 <b> & digits", widths=WIDTHS)


def test_the_page_is_whole_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.opened == []
    assert parsed.addresses == []
    assert "plotly.js v" in page
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page[: page.index("<script")])


def test_the_page_shows_titles_table_and_the_reasons_of_failures_as_text(page):
    text = "".join(Page(page).texts)
    assert "resnet20 <b> & digits" in text
    assert "<b>" not in page.replace("<b>trial", "").partition("<script>")[0]
    for word in ("Learning curves", "20.0 M", "85.00 %", "fine-tuning: loss <nan> after epoch 2"):
        assert word in text


def test_hovering_over_the_front_names_the_trial_and_its_policy(page):
    trace = next(trace for trace in charts(page)["front"] if trace["name"] == "front")
    assert trace["x"] == pytest.approx([20, 50, 80])
    assert trace["y"] == pytest.approx([70, 85, 91])
    hover = trace["hovertext"][1]
    for part in ("trial 2", "85.00 %", "20.0 M (50.0 %)", "criterion fpgm", "allocation searched"):
        assert part in hover
    assert "layer1.0.conv1 50 %" in hover
    assert "layer2.0.conv1 100 %" in hover  # not named by the policy: keeps all


def test_hovering_names_the_criterion_of_each_group():
    record = trial(0)
    criteria = {"layer2.0.conv1": {"name": "l1"}}
    content = record.policy.model_dump() | {"widths": dict.fromkeys(WIDTHS, 8), "criteria": criteria}
    policy = Policy.model_validate(content)
    page = front_page([replace(record, policy=policy)], BASELINE, TWO, widths=WIDTHS)
    hover = next(trace for trace in charts(page)["front"] if trace["name"] == "front")["hovertext"][0]
    assert "criterion fpgm, l1 on 1 group<br>" in hover
    assert "layer1.0.conv1 50 %  layer2.0.conv1 25 % by l1" in hover


def test_the_page_shows_curves_widths_and_hypervolume(page):
    found = charts(page)
    assert list(found) == ["front", "curves", "widths", "hypervolume"]
    assert len(found["curves"]) == 7  # the failed trial measured nothing
    stopped = [trace for trace in found["curves"] if trace["line"]["dash"] == "dot"]
    assert len(stopped) == 1
    (heat,) = found["widths"]
    assert heat["y"] == ["trial 0", "trial 2", "trial 4"]
    assert heat["text"] == [["3/16", "32/32"], ["8/16", "32/32"], ["12/16", "32/32"]]
    assert len(found["hypervolume"][0]["y"]) == len(sweep())


def test_many_groups_are_abbreviated_when_hovering():
    widths = {f"layer{number}": 8 for number in range(40)}
    trace = next(t for t in charts(front_page(sweep(), BASELINE, TWO, widths=widths))["front"] if t["name"] == "front")
    assert "and 24 more groups" in trace["hovertext"][0]


def test_a_sweep_without_a_front_has_a_page_too():
    html = front_page([], BASELINE, THREE)
    assert "No trial finished within the constraints." in "".join(Page(html).texts)
    assert list(charts(html)) == ["front", "curves", "hypervolume"]
