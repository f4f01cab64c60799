import pytest
import torch
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared

from pruning.criteria import CRITERIA
from pruning.curves import SensitivityRanking
from pruning.errors import OptionError, RankingError, UnknownNameError
from pruning.finding import find_groups
from pruning.sensitivity import SHARES, curves_of, measure_sensitivity


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, data, **options):
    return CRITERIA.build("sensitivity", **options).rank(model, find_groups(model, IMAGE), data)


def numbers(curves):
    return {name: (c.widths.tolist(), c.loss.tolist(), c.accuracy.tolist()) for name, c in curves.items()}


@pytest.mark.parametrize(
    "options", [{}, {"criterion": "taylor", "options": {"images": 5}}, {"criterion": "ccp"}, {"criterion": "random"}]
)
def test_it_keeps_what_its_base_keeps(options):
    model, data = prepared(Residual()), [pictures()]
    ranking = ranked(model, data, **options, shares=(0.5,))
    base = CRITERIA.build(options.get("criterion", "l1"), **options.get("options", {}))
    expected = base.rank(model, find_groups(model, IMAGE), data)
    assert isinstance(ranking, SensitivityRanking)
    for name, width in find_groups(model, IMAGE).widths.items():
        assert [ranking.keep(name, w) for w in range(1, width + 1)] == [
            expected.keep(name, w) for w in range(1, width + 1)
        ]
    assert all(torch.equal(ranking.scores[name], score) for name, score in getattr(expected, "scores", {}).items())


def test_its_curves_are_those_of_its_images():
    model, (images, labels) = prepared(Residual()), pictures(40)
    groups = find_groups(model, IMAGE)
    base = CRITERIA.build("l1").rank(model, groups)
    ranking = ranked(model, batches(images, labels, 9), images=30, recalibration_images=20)
    data = ([(images[:20], labels[:20])], [(images[:30], labels[:30])])
    assert numbers(ranking.curves) == numbers(curves_of(measure_sensitivity(model, groups, base, *data, SHARES)))


@pytest.mark.parametrize("base", ["l1", "taylor"])
def test_its_curves_can_be_measured_group_by_group(base):
    model, data = prepared(Residual()), batches(*pictures(40), 9)
    criterion = CRITERIA.build("sensitivity", criterion=base, images=30, recalibration_images=20)
    groups = find_groups(model, IMAGE)
    ranking = criterion.rank(model, groups, data)
    apart = {}
    for name in groups:
        apart |= criterion.curves(model, groups.only([name]), ranking.base, data)
    assert numbers(apart) == numbers(ranking.curves)


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "random"},
        {"shares": (0.5,)},
        {"images": 20},
        {"recalibration_images": 20},
        {"recalibration_images": 0},
    ],
    ids=str,
)
def test_each_option_changes_the_curves(options):
    model, data = prepared(Residual()), [pictures(40)]
    assert numbers(ranked(model, data, **options).curves) != numbers(ranked(model, data).curves)


def test_the_options_of_the_base_arrive():
    model, data = prepared(Residual()), [pictures(40)]
    rankings = [ranked(model, data, criterion="random", options={"seed": seed}, shares=(0.5,)) for seed in (0, 1)]
    assert numbers(rankings[0].curves) != numbers(rankings[1].curves)


def test_how_the_images_are_batched_does_not_matter_at_all():
    model, (images, labels) = prepared(chain()), pictures(300)
    first = numbers(ranked(model, [(images, labels)]).curves)
    assert numbers(ranked(model, batches(images, labels, 7)).curves) == first


def test_no_batch_is_asked_for_that_is_not_needed():
    def stream():
        yield from batches(*pictures(8), 4)
        raise AssertionError("asked for a batch that is not needed")

    ranked(prepared(chain()), stream(), images=6, recalibration_images=8)


def test_a_channel_that_nobody_reads_costs_nothing():
    model, data = prepared(chain()), [pictures(40)]
    model[4].weight.data[:, 2:] = 0
    model[0].weight.data[2:] *= 1e-3  # so that the base removes them
    curve = ranked(model, data, shares=(0.1, 0.2, 0.3, 0.4, 0.5)).curves["0"]
    assert curve.widths.tolist() == [1, 2, 3, 6]
    assert curve.loss[1:].tolist() == pytest.approx([float(curve.loss[-1])] * 3, rel=1e-12)
    assert curve.loss[0] != pytest.approx(float(curve.loss[-1]), rel=1e-3)


def test_options_that_do_not_fit_are_errors():
    for options, message in (
        ({"images": 0}, "criterion 'sensitivity', images: expected at least 1, got 0"),
        ({"recalibration_images": -1}, "'sensitivity', recalibration_images: expected 0, or at least 2, got -1"),
        ({"recalibration_images": 1}, "'sensitivity', recalibration_images: expected 0, or at least 2, got 1"),
        ({"shares": (0.5, 0)}, "criterion 'sensitivity', shares: expected numbers above 0, at most 1, got 0"),
        ({"criterion": "sensitivity"}, "criterion 'sensitivity', criterion: expected another criterion, got"),
        ({"options": {"colour": 1}}, "criterion 'l1': unknown option 'colour'"),
    ):
        with pytest.raises(OptionError, match=message):
            CRITERIA.build("sensitivity", **options)
    with pytest.raises(UnknownNameError, match="unknown criterion 'tailor'; did you mean 'taylor'"):
        CRITERIA.build("sensitivity", criterion="tailor")


def test_an_error_of_the_base_says_whose_it_is():
    model = prepared(chain())
    model[0].weight.data[1] = torch.nan
    message = r"criterion 'sensitivity', group '0': channels \[1\] have no finite score; its base is 'l1'"
    with pytest.raises(RankingError, match=message):
        ranked(model, [pictures()])
