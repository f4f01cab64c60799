"""Pictures of agreement, of what cuts cost, and of feature maps: right numbers in the right places, nothing clipped."""

import io
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pruning import ModelSpec, NestedRanking, build_model, find_groups
from search.agreement import agreements, mean_overlap
from search.figures import ImageMaps, plot_agreement, plot_maps, plot_sensitivity

HALF = Fraction(1, 2)
NAMES = (
    *("l1", "l2", "fpgm", "bn_scale", "taylor", "apoz", "ccp(joint=True)", "hrank", "dcp", "random_dcp"),
    *(f"criterion_{n}" for n in range(10)),
)


@pytest.fixture(scope="module")
def groups():
    """The 27 inner groups of ResNet-56."""
    found = find_groups(build_model(ModelSpec(name="resnet56")), torch.zeros(1, 3, 32, 32))
    return found.only(found.matching(("inner",)))


def drawn(groups, count):
    generator = torch.Generator().manual_seed(0)
    rankings = {
        label: NestedRanking(label, {n: torch.randperm(g.width, generator=generator) for n, g in groups.items()})
        for label in NAMES[:count]
    }
    return agreements(rankings, groups, [HALF])


def check_texts(figure):
    """No text is cut off at the border of the figure or lies on another."""
    texts, draw = [], Text.draw

    def noted(text, renderer):
        texts.extend([text] if text.get_visible() else [])
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:  # a tick outside its axis has a label that is not drawn
        patch.setattr(Text, "draw", noted)
        FigureCanvasAgg(figure).draw()
    boxes = [(text, text.get_window_extent()) for text in dict.fromkeys(texts) if text.get_text().strip()]
    assert len(boxes) > 5
    for text, box in boxes:
        assert Bbox.intersection(box, figure.bbox).bounds == pytest.approx(box.bounds), text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_no_text_of_the_heat_maps_is_clipped_or_lies_on_another(groups, count):
    check_texts(plot_agreement(drawn(groups, count), HALF, title="resnet56-cifar10"))


def test_the_heat_maps_show_means_to_the_left_and_groups_to_the_right(groups):
    found = drawn(groups, 3)
    figure = plot_agreement(found, HALF, title="mine")
    left, right, _ = figure.axes
    pairs = mean_overlap(found, HALF)
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in left.texts}
    for (row, one), (column, other) in itertools.product(enumerate(NAMES[:3]), repeat=2):
        assert cells.get((column, row)) == (None if one == other else f"{100 * pairs[one, other]:.0f}")
    assert [label.get_text() for label in left.get_yticklabels() if label.get_text()] == list(NAMES[:3])
    values = right.images[0].get_array()
    for row, name in enumerate(groups):
        for column, other in enumerate(NAMES[1:3]):
            (one,) = [a for a in found if (a.first, a.second, a.group) == (NAMES[0], other, name)]
            assert values[row, column] == one.overlap[HALF]
    width = groups["layer3.0.conv1"].width
    assert f"layer3.0.conv1  {width // 2}/{width}" in [label.get_text() for label in right.get_yticklabels()]


def test_less_than_chance_and_more_have_two_colours(groups):
    image = plot_agreement(drawn(groups, 3), HALF).axes[1].images[0]
    low, middle, high = image.cmap(image.norm(np.array([0.2, 0.5, 0.8])))[:, :3]
    assert low[0] > low[2]  # orange
    assert high[2] > high[0]  # violet
    assert middle.min() > 0.95  # white


def test_lines_end_at_the_baseline_and_groups_of_a_width_share_a_picture(groups):
    curves = {name: [(g.width // 4, 0.5), (g.width // 2, 0.8)] for name, g in groups.items()}
    figure = plot_sensitivity(curves, groups.widths, 0.93, title="resnet56")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"9 groups of {w} channels" for w in (16, 32, 64)]
    for axes, stage in zip(figure.axes, ("layer1", "layer2", "layer3"), strict=True):
        lines = [line for line in axes.lines if line.get_label().startswith("layer")]
        assert [line.get_label() for line in lines] == [name for name in groups if name.startswith(stage)]
        for line in lines:
            assert line.get_xydata().tolist() == [pytest.approx(p) for p in ([25, 50], [50, 80], [100, 93])]
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    check_texts(figure)


def test_one_group_and_many_stages_fit(groups):
    check_texts(plot_sensitivity({"first": [(4, 0.8)]}, {"first": 8}, 0.9, title="tiny"))
    curves = {f"features.{n}.conv.0.0": [(n, 0.2), (2 * n, 0.5)] for n in range(4, 11)}
    figure = plot_sensitivity(curves, {name: 4 * int(name.split(".")[1]) for name in curves}, 0.9)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 7 + [False] * 2
    check_texts(figure)


def picture(channels, seed=0, side=8):
    draw = np.random.default_rng(seed)
    return ImageMaps(f"class {seed}", draw.random((32, 32, 3)), draw.random((channels, side, side)) ** 4)


def maps_of(figure):
    """Return channel number → axes, in the order in which they were drawn."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title().isdecimal()}


def test_each_map_stands_under_its_number_kept_to_the_left_of_removed():
    image = picture(12)
    figure = plot_maps([image], [3, 1, 0, 7, 9], [2, 4, 5, 6, 8, 10, 11], title="first", subtitle="all of them")
    found = maps_of(figure)
    assert list(found) == ["3", "1", "0", "7", "9", "2", "4", "5", "6", "8", "10", "11"]
    for number, axes in found.items():
        assert np.array_equal(axes.images[0].get_array(), image.maps[int(number)])
    for row in ("31079", "24568"):
        places = [found[number].get_position() for number in row]
        assert sorted(place.x0 for place in places) == [place.x0 for place in places]
        assert len({place.y0 for place in places}) == 1
    kept = max(found[str(channel)].get_position().x1 for channel in (3, 1, 0, 7, 9))
    assert kept < min(found[str(channel)].get_position().x0 for channel in (2, 4, 5))
    frames = [found[number].spines["left"].get_edgecolor() for number in ("3", "9", "2", "11")]
    assert frames[0] == frames[1] != frames[2] == frames[3]
    assert {"kept: 5", "removed: 7"} <= {text.get_text() for text in figure.texts}
    check_texts(figure)


def test_of_many_channels_the_first_kept_and_the_last_removed_are_shown():
    figure = plot_maps([picture(512)], range(200), range(200, 512), title="first")
    assert list(map(int, maps_of(figure))) == [*range(16), *range(496, 512)]
    assert {"kept: 200, the first 16", "removed: 312, the last 16"} <= {text.get_text() for text in figure.texts}
    check_texts(figure)


def test_the_maps_of_a_row_share_a_scale_that_one_pixel_does_not_set():
    bright, dark = picture(8, 1), picture(8, 2)
    bright.maps[3, 0, 0] = 1000.0
    figure = plot_maps([bright, dark], [0, 1, 2, 3], [4, 5, 6, 7])
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.get_title().isdecimal()]
    assert (len(limits), len(set(limits[:8])), len(set(limits[8:]))) == (16, 1, 1)
    assert limits[0] != limits[8]
    assert limits[0][0] == 0 < limits[0][1] < 1.1
    check_texts(figure)


@pytest.mark.parametrize(("kept", "removed", "side"), [(1, 1, 1), (1, 7, 4), (16, 16, 7), (9, 3, 14)])
def test_few_channels_and_small_maps_fit(kept, removed, side):
    channels = kept + removed
    images = [picture(channels, seed, side) for seed in range(2)]
    images.append(ImageMaps("MMMMMMMMMM_val_00000293.JPEG", np.zeros((28, 28)), np.zeros((channels, side, side))))
    figure = plot_maps(images, range(kept), range(kept, channels), title="g", subtitle="as the next layer reads them")
    figure.savefig(io.BytesIO())
    assert len([axes for axes in figure.axes if axes.get_title().isdecimal()]) == 3 * channels
    check_texts(figure)
