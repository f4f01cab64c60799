"""The front as table and picture, and what papers report beside it."""

from __future__ import annotations

import csv
import io
import itertools
import re
from dataclasses import replace

import matplotlib
import pytest
import sweeps
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pruning import CostModel, CriterionSpec, ModelSpec, Policy, build_model, find_groups, input_shape, paper_groups
from search.errors import SweepError
from search.figures import Subject, front_cells, front_markdown, front_table, write_front_csv
from search.figures.papers import REPORTED, reported_on
from search.figures.trade_off import trade_off
from search.figures.trade_off_drawing import plot_trade_off
from search.pareto import front
from search.results import Metrics, State, TrialRecord
from search.sections import DataSpec

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


# ── where networks lie ───────────────────────────────────────────────────────────────────────────────────────────────


def subject(records=None, objectives=TWO, **more):
    found = sweep() if records is None else records
    return Subject(found, more.pop("baseline", BASELINE), objectives, WIDTHS, **{"title": "resnet20", **more})


def numbers(marks):
    return [mark.number for mark in marks]


def test_every_trial_has_the_part_that_it_played():
    data = trade_off(subject())
    assert numbers(data.front) == [0, 2, 4]
    assert numbers(data.dominated) == [1, 3]
    assert numbers(data.infeasible) == [5]
    assert numbers(data.stopped) == [6]
    assert data.incomplete == ()
    assert (data.best.number, data.baseline.x, data.baseline.y) == (2, 100, pytest.approx(90))
    (stopped,) = data.stopped
    assert (stopped.x, stopped.y) == pytest.approx((30, 10))


@pytest.mark.parametrize("objectives", [TWO, THREE])
def test_each_trial_that_measured_accuracy_and_cost_is_drawn_once(objectives):
    records = sweeps.records(200, latency=True)
    records[3] = replace(records[3], history=(replace(records[3].metrics, latency_ms=None),))
    data = trade_off(sweeps.subject(records, objectives))
    there = {record.number for record in records if record.state in (State.FINISHED, State.STOPPED)}
    drawn = numbers(data.trials)
    assert sorted(drawn) == sorted(there)
    lacking = {3} if objectives == THREE else set()
    assert set(numbers(data.incomplete)) == lacking
    assert set(numbers(data.stopped)) == {record.number for record in records if record.state is State.STOPPED}

    def point(record):
        metrics = record.metrics
        return (-metrics.accuracy, metrics.macs, metrics.latency_ms)[: len(objectives)]

    rivals = [r for r in records if r.state is State.FINISHED and r.feasible and r.number not in lacking]

    def beats(other, one):
        return other is not one and all(a <= b for a, b in zip(point(other), point(one), strict=True))

    beaten = {one.number for one in rivals if any(beats(other, one) for other in rivals)}
    assert set(numbers(data.dominated)) == beaten
    assert set(numbers(data.front)) == {record.number for record in rivals} - beaten


def test_hovering_names_the_trial_its_criterion_its_costs_and_its_accuracy_and_on_the_front_its_policy():
    data = trade_off(subject())
    for record, mark in zip([sweep()[1], sweep()[3]], data.dominated, strict=True):
        share, count = record.metrics.macs / BASELINE["macs"], record.metrics.macs / 1e6
        assert mark.text.split("<br>") == [
            f"<b>trial {record.number}</b> after 1 epoch",
            "criterion fpgm",
            f"accuracy {100 * record.metrics.accuracy:.2f} %",
            f"MACs {count:.1f} M ({100 * share:.1f} %)",
        ]
    text = data.front[1].text
    for part in ("allocation searched", "parameters 135 k (50.0 %)", "layer1.0.conv1 50 %", "layer2.0.conv1 100 %"):
        assert part in text  # a group that the policy does not name keeps all
    assert data.stopped[0].text.startswith("<b>trial 6</b> stopped early after 1 epoch<br>")


def test_hovering_names_the_criterion_of_each_group():
    record = trial(0)
    criteria = {"layer2.0.conv1": {"name": "l1"}}
    content = record.policy.model_dump() | {"widths": dict.fromkeys(WIDTHS, 8), "criteria": criteria}
    text = trade_off(subject([replace(record, policy=Policy.model_validate(content))])).front[0].text
    assert "criterion fpgm, l1 on 1 group<br>" in text
    assert "layer1.0.conv1 50 %  layer2.0.conv1 25 % by l1" in text


def test_many_groups_are_abbreviated_when_hovering():
    widths = {f"layer{number}": 8 for number in range(40)}
    data = trade_off(Subject(sweep(), BASELINE, TWO, widths))
    assert "and 24 more groups" in data.front[0].text


def test_a_trial_that_learned_nothing_does_not_squeeze_the_front_and_is_counted():
    data = trade_off(subject([trial(0, 0.88, 0.3), trial(1, 0.9, 0.6), trial(2, 0.1, 0.7)]))
    assert 80 < data.ends[0] < 88
    assert data.hidden == 1
    assert "1 below the axis" in plot_trade_off(data).texts[1].get_text()


def test_the_counts_and_the_caption_say_what_there_is():
    data = trade_off(subject())
    assert data.counts == "8 trials: 6 finished, 1 of them broke a constraint, 1 stopped early, 1 failed; front of 3"
    assert data.caption == (
        "Further up and left is better; the line joins the front, which no other trial beats. "
        "Hollow: stopped early, where it stopped (grey), or breaks a constraint (pink). 1 below the axis."
    )
    assert "coloured by latency is the front" in trade_off(subject(objectives=THREE)).caption


def test_a_baseline_without_the_objective_is_refused():
    with pytest.raises(SweepError, match="baseline: expected a positive latency_ms, got None"):
        trade_off(subject(objectives=("accuracy", "latency_ms"), baseline={"accuracy": 0.9, "macs": 1}))


# ── what papers report ───────────────────────────────────────────────────────────────────────────────────────────────


def test_points_of_papers_are_of_the_same_network_on_the_same_images():
    def found(name, data, classes=10):
        points = reported_on(ModelSpec(name=name, num_classes=classes), DataSpec(name=data))
        return {(point.network, point.images) for point in points}

    assert found("resnet56", "cifar10") == found("preresnet56", "image_folder") == {("ResNet-56", "CIFAR-10")}
    assert found("resnet56", "cifar100", 100) == {("ResNet-56", "CIFAR-100")}
    assert found("resnet50", "imagenet", 1000) == {("ResNet-50", "ImageNet")}
    for nothing in (("resnet20", "cifar10"), ("resnet56", "digits"), ("resnet56", "image_folder", 7)):
        assert found(*nothing) == set()
    assert found("resnet56", "my.module:images") == set()


def test_a_papers_change_is_put_beside_this_baseline_and_names_its_source():
    points = reported_on(ModelSpec(name="resnet56", num_classes=10), DataSpec(name="cifar10"))
    data = trade_off(subject(reported=points))
    assert [(mark.x, mark.y) for mark in data.reported] == [
        (point.macs, pytest.approx(90 + point.change)) for point in points
    ]
    dcp = next(mark.text for mark in data.reported if mark.text.startswith("<b>DCP</b>"))
    for part in ("−0.31 points with 50.3 % of the MACs", "test images of CIFAR-10", "NeurIPS 2018, Table 1"):
        assert part in dcp
    assert [name for kind, name, _ in data.others if kind == "reported"] == [
        "papers: test images of CIFAR-10, long recipes"
    ]
    assert "against its own baseline" in data.note
    by_latency = trade_off(subject(objectives=("accuracy", "latency_ms"), reported=points))
    assert (by_latency.reported, by_latency.note) == ((), "")


def test_every_point_of_a_paper_can_be_one():
    for point in REPORTED:
        assert 0 < point.macs < 100, point
        assert -10 < point.change < 1, point
        assert point.source
    assert len(set(REPORTED)) == len(REPORTED)


@pytest.mark.parametrize(
    ("model", "network", "percents"),
    [
        ("preresnet56", "ResNet-56", 50),
        ("vgg19_bn_cifar", "VGG-19", 30),
        ("mobilenet_v1_cifar", "MobileNet v1", 30),
    ],
)
def test_the_macs_that_dcp_keeps_are_those_of_its_widths(model, network, percents):
    spec = ModelSpec(name=model)
    example = torch.zeros(1, *input_shape(spec))
    built = build_model(spec)
    groups = find_groups(built, example)
    cost = CostModel(built, groups, example)
    cut = set(groups.matching(paper_groups(spec)))
    widths = {name: g.width - (percents * g.width // 100 if name in cut else 0) for name, g in groups.items()}
    share = 100 * cost.cost(widths).macs / cost.full.macs
    points = [p for p in REPORTED if (p.network, p.images, p.method) == (network, "CIFAR-10", "DCP")]
    assert [point.macs for point in points] == [pytest.approx(share, abs=0.006)]


# ── the picture ──────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(figure):
    figure.savefig(io.BytesIO())
    return figure


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_picture_shows_every_part_where_it_is():
    points = reported_on(ModelSpec(name="resnet56"), DataSpec(name="cifar10"))
    figure = drawn(plot_trade_off(trade_off(subject(reported=points))))
    axes = figure.axes[0]
    papers = "papers: test images of CIFAR-10, long recipes"
    assert set(legend(figure)) == {"dominated", "stopped early", "breaks a constraint", papers, "front", "baseline"}
    line = next(line for line in axes.lines if line.get_label() == "front")
    assert line.get_xydata().tolist() == [pytest.approx(place) for place in ([20, 70], [50, 85], [80, 91])]
    places = {found.get_label(): found.get_offsets().tolist() for found in axes.collections}
    assert places["dominated"] == [pytest.approx([40, 65]), pytest.approx([70, 80])]
    assert places["breaks a constraint"] == [pytest.approx([10, 99])]
    assert places["stopped early"] == [pytest.approx([30, 10])]
    assert places["baseline"] == [pytest.approx([100, 90])]
    assert len(places[papers]) == len(points)
    for hollow in ("breaks a constraint", "stopped early"):
        assert next(found for found in axes.collections if found.get_label() == hollow).get_facecolor().size == 0
    assert [note.get_text() for note in axes.texts] == ["best at ≤ 50 %: trial 2\n85.00 % with 50.0 % of the MACs"]


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
    points = reported_on(ModelSpec(name="resnet56"), DataSpec(name="cifar10"))
    title = "resnet20 on digits, 24 trials with three criteria"
    figure = plot_trade_off(trade_off(subject(records, objectives, title=title, reported=points)))
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
    figure = drawn(plot_trade_off(trade_off(subject(objectives=THREE))))
    points = next(found for found in figure.axes[0].collections if found.get_label() == "front")
    assert points.get_array().tolist() == pytest.approx([20, 50, 80])
    assert figure.axes[1].get_ylabel() == "latency, % of the baseline's"


def test_an_empty_front_is_said():
    figure = drawn(plot_trade_off(trade_off(subject([]))))
    assert [note.get_text() for note in figure.axes[0].texts] == ["no trial is on the front"]


def test_drawing_opens_no_window_and_changes_no_setting():
    before = dict(matplotlib.rcParams)
    drawn(plot_trade_off(trade_off(subject())))
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs
