"""The data of a sweep's other pictures, each against the records that it was made of."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import sweeps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from pruning import CriterionSpec, Policy
from search.errors import SweepError
from search.figures import report
from search.figures.curves import MOST_CURVES, MOST_EPOCHS, curves, plot_curves
from search.figures.dimensions import Dimension, dimensions, kept_by_stage
from search.figures.importance import importance, plot_importance
from search.figures.kept_channels import kept_channels, plot_kept_channels
from search.figures.latencies import latencies, plot_latencies
from search.figures.parallel import APART, axis_of, parallel, plot_parallel
from search.figures.predictions import plot_predictions, predictions
from search.figures.subject import NothingToDrawError, some_of
from search.figures.volume import plot_volume, volume
from search.pareto import hypervolume
from search.results import Metrics, State

WIDTHS = sweeps.WIDTHS


@pytest.fixture(scope="module")
def found():
    return sweeps.subject(sweeps.records(60, latency=True))


@pytest.fixture(scope="module")
def many():
    return sweeps.subject(sweeps.records(700, epochs=100))


def none_of(subject, *states):
    return sweeps.subject([record for record in subject.records if record.state not in states])


def drawn(figure):
    figure.savefig(io.BytesIO())
    return figure


def test_some_of_many_are_evenly_spaced_and_have_both_ends():
    assert some_of([1, 2, 3], 3) == [1, 2, 3]
    assert some_of(list(range(101)), 5) == [0, 25, 50, 75, 100]


# ── channels kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rows_are_the_fronts_policies_and_the_columns_the_groups_in_order(found):
    data = kept_channels(found)
    assert data.numbers == tuple(record.number for record in found.front)
    assert list(data.costs) == sorted(data.costs)
    assert dict(data.groups) == {name: full for name, full in WIDTHS.items() if name != "stem"}
    assert [name for name, _ in data.groups] == [name for name in WIDTHS if name != "stem"]
    for record, row, shares in zip(found.front, data.channels, data.shares, strict=True):
        assert dict(zip(WIDTHS, (16, *row), strict=True)) == {"stem": 16} | record.policy.widths
        assert shares == [100 * record.policy.widths[name] / full for name, full in data.groups]
    assert data.whole == 1
    assert "1 group that no trial cuts is left out." in data.caption


def test_hovering_over_a_cell_says_what_is_kept_of_how_many(found):
    data, first = kept_channels(found), found.front[0]
    name, full = data.groups[4]
    kept = first.policy.widths[name]
    assert data.texts[0][4].startswith(f"<b>{name}</b> keeps {kept} of {full} channels ({100 * kept / full:.0f} %)<br>")
    assert f"<b>trial {first.number}</b>" in data.texts[0][4]


def test_a_long_front_is_shown_in_parts_with_both_ends():
    record = sweeps.records(1)[0]
    steps = [
        replace(record, number=n, history=(Metrics(3, 0.5 + n / 1000, 0.1, 1000 * (n + 1), 5),), state=State.FINISHED)
        for n in range(200)
    ]
    data = kept_channels(sweeps.subject(steps))
    assert (len(data.numbers), data.numbers[0], data.numbers[-1], data.members) == (60, 0, 199, 200)
    assert "60 of 200 policies are shown." in data.caption
    drawn(plot_kept_channels(data))


def test_without_a_front_or_a_cut_there_are_no_widths(found):
    with pytest.raises(NothingToDrawError, match="No trial is on the front"):
        kept_channels(none_of(found, State.FINISHED))
    whole = found.records[0].policy.model_copy(update={"widths": WIDTHS})
    with pytest.raises(NothingToDrawError, match="No trial cuts a group"):
        kept_channels(sweeps.subject([replace(found.records[0], policy=whole)]))


# ── dimensions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stages_width_is_the_mean_share_of_its_groups_that_are_cut(found):
    records = found.finished
    stages = {dimension.name: dimension for dimension in kept_by_stage(found, records)}
    assert list(stages) == ["kept.16", "kept.32", "kept.64"]
    for full in (16, 32, 64):
        names = [name for name, width in WIDTHS.items() if width == full and name != "stem"]
        means = [100 * sum(record.policy.widths[name] / full for name in names) / len(names) for record in records]
        assert stages[f"kept.{full}"].values == pytest.approx(means)


def test_many_stages_become_six_parts():
    record = sweeps.records(1)[0]
    widths = {f"layer{n}": 8 * (n + 1) for n in range(20)}
    policies = [record.policy.model_copy(update={"widths": dict.fromkeys(widths, n)}) for n in (2, 5)]
    records = [replace(record, policy=policy) for policy in policies]
    stages = kept_by_stage(sweeps.subject(records, widths=widths), records)
    assert [stage.name for stage in stages] == [
        "kept.8–32",
        "kept.40–64",
        "kept.72–88",
        "kept.96–112",
        "kept.120–136",
        "kept.144–160",
    ]
    assert stages[0].values[0] == pytest.approx(100 * np.mean([2 / width for width in (8, 16, 24, 32)]))


def test_the_dimensions_are_those_in_which_trials_differ(found):
    records = [
        replace(
            record, params=record.params | {"auxiliary.count": 2, "auxiliary.position.1of2": n, "width.stem": 0.1 * n}
        )
        for n, record in enumerate(found.finished)
    ]
    names = [dimension.name for dimension in dimensions(found, records)]
    assert names == ["criterion", "budget", "recipe.learning_rate", "kept.16", "kept.32", "kept.64"]


def test_what_a_trial_was_not_asked_for_does_not_exist_and_a_recipes_value_is_the_policys(found):
    first, second = found.finished[:2]
    second = replace(second, params={"recipe.milestones": 1})  # its place in a list of lists
    searched = {d.name: d.values for d in dimensions(found, [replace(first, params={"criterion": "l1"}), second])}
    assert searched["criterion"] == ("l1", None)
    assert searched["recipe.milestones"] == (None, str(second.policy.recipe.milestones))


def test_criteria_by_group_are_the_part_of_the_groups_that_each_ranks(found):
    record = found.finished[0]
    some = {name: {"name": "fpgm"} for name in record.policy.widths if name.startswith("layer1")}
    mixed = record.policy.model_dump() | {"criterion": CriterionSpec(name="l1"), "criteria": some}
    params = {f"criterion.{name}": "fpgm" for name in some}
    alone = record.policy.model_copy(update={"criterion": CriterionSpec(name="l1")})
    records = [replace(record, policy=Policy.model_validate(mixed), params=params), replace(record, policy=alone)]
    searched = {dimension.name: dimension.values for dimension in dimensions(found, records)}
    assert {name: searched[name] for name in ("criterion l1", "criterion fpgm")} == {
        "criterion l1": (pytest.approx(100 * 6 / 9), 100.0),
        "criterion fpgm": (pytest.approx(100 * 3 / 9), 0.0),
    }
    assert not [name for name in searched if name.startswith("criterion.")]


# ── parallel axes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_goes_through_what_its_trial_chose_and_the_fronts_are_on_top(found):
    data = parallel(found)
    labels = [axis.label for axis in data.axes]
    assert labels == [
        "criterion",
        "learning rate",
        "kept of 16, %",
        "kept of 32, %",
        "kept of 64, %",
        "MACs, %",
        "accuracy, %",
    ]
    assert len(data.texts) == len(found.finished) == data.finished
    members = len(found.front)
    assert data.on_front == (False,) * (len(data.texts) - members) + (True,) * members
    by_number = {record.number: record for record in found.finished}
    criteria = {text: place for place, text in data.axes[0].ticks}
    for line, text in enumerate(data.texts):
        record = by_number[int(text.split("</b>")[0].removeprefix("<b>trial "))]
        assert data.axes[0].places[line] == criteria[record.params["criterion"]]
        assert data.accuracies[line] == pytest.approx(100 * record.metrics.accuracy)
    for axis in data.axes:
        assert all(0 <= place <= 1 for place in axis.places)
        assert all(0 <= place <= 1 for place, _ in axis.ticks)


def test_the_budget_has_no_axis_beside_the_cost_that_meets_it(found):
    other = [replace(record, params=record.params | {"budget": 0.5 + record.number / 200}) for record in found.records]
    assert "budget, %" in [axis.label for axis in parallel(sweeps.subject(other)).axes]
    assert "budget, %" not in [axis.label for axis in parallel(found).axes]


def test_places_are_in_the_order_of_values_also_by_their_logarithm():
    values = (0.001, 0.1, 0.01, 0.02)
    for logarithmic in (False, True):
        places = axis_of(Dimension("a", "a", values, logarithmic)).places
        assert np.argsort(places).tolist() == np.argsort(values).tolist()
    assert places == pytest.approx([0, 1, 0.5, (math.log10(0.02) + 3) / 2])


def test_what_does_not_exist_lies_below_what_does_and_is_called_none():
    axis = axis_of(Dimension("a", "a", (1.0, None, 3.0, 2.0)))
    assert axis.places == pytest.approx((APART, 0, 1, (1 + APART) / 2))
    assert (0.0, "none") in axis.ticks
    choice = axis_of(Dimension("b", "b", ("x", None, "y", "x")))
    assert [text for _, text in choice.ticks] == ["x", "y", "none"]
    assert choice.places[0] == choice.places[3] < choice.places[2] < choice.places[1]


def test_few_numbers_that_come_again_are_choices_and_others_are_not():
    assert Dimension("a", "a", (64.0, 128.0, 64.0, 64.0, 128.0, 64.0)).categories == [64.0, 128.0]
    assert Dimension("a", "a", (0.1, 0.2, 0.4)).categories == []
    assert Dimension("a", "a", ("l1", "fpgm", None)).categories == ["fpgm", "l1", None]


def test_one_trial_alone_or_equal_ones_are_not_compared(found):
    with pytest.raises(NothingToDrawError, match="as soon as two trials have finished"):
        parallel(sweeps.subject(found.finished[:1]))
    with pytest.raises(NothingToDrawError, match="have the same values"):
        parallel(sweeps.subject([found.finished[0]] * 3))


# ── what matters ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_matters_at_equal_cost_is_found_and_the_cost_stands_apart():
    data = importance(sweeps.subject(sweeps.records(150, seed=1)))
    assert data.by_cost > 60  # accuracy was made from the widths
    assert [bar.label for bar in data.bars[:2]] == ["criterion", "learning rate"]
    assert data.bars[0].share > 50
    assert "budget, %" not in [bar.label for bar in data.bars]
    assert sum(bar.share for bar in data.bars) == pytest.approx(100)
    assert sum(share for _, share, _ in data.parts) == pytest.approx(100)
    assert data == importance(sweeps.subject(sweeps.records(150, seed=1)))
    drawn(plot_importance(data))


def test_what_does_not_matter_is_not_said_to():
    rng = np.random.default_rng(0)
    records = []
    for record in sweeps.records(100, state=State.FINISHED):
        accuracy = 0.5 + 0.4 * record.metrics.macs / sweeps.BASELINE["macs"] + 0.02 * rng.normal()
        records.append(replace(record, history=(replace(record.metrics, accuracy=accuracy),)))
    with pytest.raises(NothingToDrawError, match=r"^9\d % .* follow from MACs alone; nothing that was searched"):
        importance(sweeps.subject(records))


def test_few_trials_tell_nothing_and_it_is_said(found):
    with pytest.raises(NothingToDrawError, match="from 20 finished trials on; there are 3 so far"):
        importance(sweeps.subject(found.finished[:3]))
    with pytest.raises(NothingToDrawError, match="there are none so far"):
        importance(sweeps.subject([]))
    with pytest.raises(NothingToDrawError, match="do not differ"):
        importance(sweeps.subject([found.finished[0]] * 30))


# ── learning curves ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_trial_that_measured_has_its_curve_and_the_fronts_are_last(found):
    data = curves(found)
    by_number = {record.number: record for record in found.records if record.history}
    assert {curve.number for curve in data.shown} == set(by_number)
    for curve in data.shown:
        history = by_number[curve.number].history
        assert curve.epochs == tuple(metrics.epoch for metrics in history)
        assert curve.accuracies == tuple(100 * metrics.accuracy for metrics in history)
        assert curve.on_front == (by_number[curve.number] in found.front)
        assert curve.stopped == (by_number[curve.number].state is State.STOPPED)
    assert [curve.number for curve in data.shown[-len(found.front) :]] == [record.number for record in found.front]
    assert [name for name, _ in data.kinds] == ["other trials", "stopped early", "front"]
    drawn(plot_curves(data))


def test_curves_are_bounded_in_number_and_length(many):
    data = curves(many)
    assert sum(not curve.on_front for curve in data.shown) == MOST_CURVES
    longest = max(data.shown, key=lambda curve: curve.epochs[-1])
    assert (len(longest.epochs), longest.epochs[0], longest.epochs[-1]) == (MOST_EPOCHS, 0, 100)
    assert f"{MOST_CURVES} of {data.others} other trials are drawn." in data.caption


def test_what_is_no_accuracy_is_left_out_of_a_curve(found):
    record = found.finished[0]
    history = (replace(record.history[0], accuracy=math.nan), *record.history[1:])
    assert curves(sweeps.subject([replace(record, history=history)])).shown[0].epochs == (1, 2, 3)
    with pytest.raises(NothingToDrawError, match="measured anything"):
        curves(sweeps.subject([replace(record, history=())]))


# ── hypervolume ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("objectives", [sweeps.TWO, sweeps.THREE])
def test_the_hypervolume_is_that_of_all_trials_so_far_by_number_and_by_time(objectives):
    records = sweeps.records(40, latency=True)
    records[2] = replace(records[2], ended=2000.0)  # the last to end
    subject = sweeps.subject(records, objectives)
    data = volume(subject)
    by_number = [hypervolume(records[:count], objectives, sweeps.BASELINE) for count in range(1, 41)]
    assert [step.volume for step in data.by_trials] == pytest.approx(by_number)
    assert [step.place for step in data.by_trials] == list(range(1, 41))
    by_end = sorted(records, key=lambda record: record.ended)
    by_time = [hypervolume(by_end[:count], objectives, sweeps.BASELINE) for count in range(1, 41)]
    assert [step.volume for step in data.by_time] == pytest.approx(by_time)
    assert (data.unit, data.by_time[-1].place) == ("minutes", pytest.approx(1000 / 60))
    drawn(plot_volume(data))


def test_old_records_without_an_end_count_from_their_start_and_seconds():
    records = [replace(record, ended=None) for record in sweeps.records(10)]
    assert [step.place for step in volume(sweeps.subject(records)).by_time] == [
        record.started + record.seconds - 1000 for record in records
    ]


def test_of_very_many_trials_only_the_steps_that_rise_are_kept():
    data = volume(sweeps.subject(sweeps.records(1500, epochs=1)))
    assert len(data.by_trials) < 300
    assert data.by_trials[-1].place == 1500
    volumes = [step.volume for step in data.by_trials[:-1]]
    assert volumes == sorted(set(volumes))


def test_without_a_front_nothing_is_dominated_and_a_baseline_without_the_cost_is_refused(found):
    with pytest.raises(NothingToDrawError, match="nothing is dominated"):
        volume(sweeps.subject([]))
    with pytest.raises(SweepError, match="expected a positive macs"):
        volume(sweeps.subject(found.records, baseline={"accuracy": 0.9}))


# ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_expected_accuracy_is_compared_with_that_of_the_same_stage(found):
    data = predictions(found)
    by_number = {record.number: record for record in found.records}
    compared = {
        record.number
        for record in found.records
        if "predicted" in record.extra
        and record.history
        and (record.state is State.FINISHED or not record.extra["predicted"]["trained"])
    }
    assert {guess.number for guess in data.guesses} == compared
    for guess in data.guesses:
        record = by_number[guess.number]
        stage = record.history[-1] if guess.trained else record.history[0]
        assert guess.measured == 100 * stage.accuracy
        assert guess.expected == 100 * record.extra["predicted"]["accuracy"]
        assert guess.deviation == pytest.approx(2)
    off = np.mean([abs(guess.measured - guess.expected) for guess in data.guesses])
    assert data.error == pytest.approx(off)
    assert f"Off by {off:.2f} points in the mean of {len(compared)} trials." in data.caption
    assert [len(guesses) for _, _, guesses in data.kinds] == [len(compared) - 5, 5]  # trials 1, 2, 3, 5, 6
    drawn(plot_predictions(data))


def test_without_predictions_or_without_measurements_it_is_said(found):
    with pytest.raises(NothingToDrawError, match="wrote down what it expects"):
        predictions(sweeps.subject([replace(record, extra={}) for record in found.records]))
    with pytest.raises(NothingToDrawError, match="as far as it was predicted"):
        predictions(sweeps.subject([replace(record, history=()) for record in found.records]))


# ── latency ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_macs_and_latency_are_parts_of_the_baselines(found):
    data = latencies(found)
    timed = [record for record in found.records if record.history]
    assert [trial.number for trial in data.trials] == [record.number for record in timed]
    for trial, record in zip(data.trials, timed, strict=True):
        assert trial.macs == pytest.approx(100 * record.metrics.macs / sweeps.BASELINE["macs"])
        assert trial.latency == pytest.approx(100 * record.metrics.latency_ms / 10)
        assert trial.on_front == (record in found.front)
        assert f"latency {record.metrics.latency_ms:.3g} ms" in trial.text
    assert data.latency_axis == "latency, % of the baseline's 10 ms"
    drawn(plot_latencies(data))
    with pytest.raises(NothingToDrawError, match="not measured"):
        latencies(sweeps.subject(sweeps.records(5)))


def test_lines_are_bounded_in_number(many):
    data = parallel(many)
    assert len(data.texts) == 400 + len(many.front) < data.finished
    assert f"{len(data.texts)} of {data.finished} trials are drawn." in data.caption
    drawn(plot_parallel(data))


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [4, 60, 700])
@pytest.mark.parametrize("picture", report.PICTURES, ids=lambda picture: picture.name)
def test_no_text_of_a_picture_is_clipped_and_its_title_is_clear_of_its_axes(picture, count):
    records = sweeps.records(count, latency=True)
    subject = sweeps.subject(records, sweeps.THREE, title="resnet56-on-cifar10-with-three-criteria-and-a-long-name")
    try:
        figure = picture.plot(picture.data(subject))
    except NothingToDrawError:
        assert (picture.name, count) == ("importance", 4)
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    everything = figure.get_tightbbox(canvas.get_renderer())  # in inches
    assert 0 <= everything.x0 < everything.x1 <= figure.get_figwidth()
    assert 0 <= everything.y0 < everything.y1 <= figure.get_figheight()
    title, caption = (Text.get_window_extent(text) for text in figure.texts[:2])
    assert not title.overlaps(caption)
    for axes in figure.axes:
        assert axes.get_tightbbox().y1 < caption.y0
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)
