import numpy as np
import pytest
import torch
from small_networks import IMAGE, Residual, batches, chain, inputs_of, pictures, prepared
from torch import nn

from pruning.criteria.chip import CHIP
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.spectra import nuclear_drops


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(5)


def depthwise():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    )


def by_definition(model, group, images, decimals=None):
    """Return each channel's score from channels + 1 SVDs an image, summed over the distinct tensors that are read."""
    seen = inputs_of(model, images)
    distinct = {id(seen[part.layer]): (seen[part.layer].numpy(), part) for part in group.readers}.values()
    scores = np.zeros(group.width)
    for x, part in distinct:
        for image in x if decimals is None else np.round(x, decimals):
            rows = np.stack([image[list(positions)].ravel() for positions in part.positions]).astype(np.float64)
            for channel in range(group.width):
                zeroed = rows.copy()
                zeroed[channel] = 0
                scores[channel] += (np.linalg.norm(rows, "nuc") - np.linalg.norm(zeroed, "nuc")) / len(x)
    return scores.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [Residual, chain, depthwise])
def test_is_the_drop_of_the_nuclear_norm_where_a_channel_is_read(build, dtype):
    model, (images, labels) = prepared(build()).to(dtype), pictures(12)
    images = images.to(dtype)
    groups = find_groups(model, IMAGE.to(dtype))
    ranking = CHIP().rank(model, groups, [(images, labels)])
    assert ranking.criterion == "chip"
    for name, group in groups.items():
        assert ranking.scores[name].tolist() == pytest.approx(by_definition(model, group, images), rel=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_the_authors_and_changes_the_scores(dtype):
    model, (images, labels) = prepared(Residual()).to(dtype), pictures(12)
    images = images.to(dtype)
    groups = find_groups(model, IMAGE.to(dtype))
    exact = CHIP().rank(model, groups, [(images, labels)])
    for decimals in (0, 1):
        rounded = CHIP(round_decimals=decimals).rank(model, groups, [(images, labels)])
        for name, group in groups.items():
            expected = by_definition(model, group, images, decimals)
            assert rounded.scores[name].tolist() == pytest.approx(expected, rel=1e-5), name
            assert rounded.scores[name].tolist() != pytest.approx(exact.scores[name].tolist(), rel=1e-3), name


def test_half_precision_is_rounded_in_float64():
    model, (images, labels) = prepared(chain()).bfloat16(), pictures(12)
    found = CHIP(round_decimals=1).rank(model, find_groups(model, IMAGE.bfloat16()), [(images, labels)]).scores["0"]
    maps = inputs_of(model, images.bfloat16())["4"].double().round(decimals=1)
    assert found.tolist() == pytest.approx(nuclear_drops(maps).mean(dim=0).tolist(), rel=1e-9)


def test_a_channel_that_never_fires_is_last_and_scores_exactly_zero():
    model = prepared(chain())
    model[1].weight.data[2], model[1].bias.data[2] = 0, -1
    ranking = CHIP().rank(model, find_groups(model, IMAGE), batches(*pictures(12), 5))
    assert ranking.scores["0"][2] == 0
    assert ranking.orders["0"][-1] == 2
    assert bool((ranking.scores["0"][[0, 1, 3, 4, 5]] > 0).all())


def test_a_duplicate_is_worth_less_than_the_channel_was_and_both_the_same():
    model, data = prepared(chain()), batches(*pictures(12), 5)
    groups = find_groups(model, IMAGE)
    before = CHIP().rank(model, groups, data).scores["0"]
    for part in (*groups["0"].makers, *groups["0"].carried):
        tensor = model.state_dict()[part.tensor]
        tensor[4] = tensor[1]
    after = CHIP().rank(model, groups, data).scores["0"]
    assert after[4].item() == pytest.approx(after[1].item(), rel=1e-9)
    assert after[1] < before[1]


def test_looks_at_640_images_unless_told_otherwise():
    model, (images, labels) = prepared(chain()), pictures(12)
    groups = find_groups(model, IMAGE)
    few = CHIP(images=5).rank(model, groups, batches(images, labels, 4))
    first = CHIP(images=None).rank(model, groups, [(images[:5], labels[:5])])
    whole = CHIP().rank(model, groups, batches(images, labels, 4))
    assert few.scores["0"].tolist() == pytest.approx(first.scores["0"].tolist(), rel=1e-12)
    assert few.scores["0"].tolist() != pytest.approx(whole.scores["0"].tolist(), rel=1e-3)
    assert CHIP().images == 640


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_are_an_error_that_names_the_group(value):
    model = prepared(chain())
    model[1].bias.data[1] = value
    with pytest.raises(RankingError, match=r"criterion 'chip', group '0': channels \[0, 1, .*5\] have no finite score"):
        CHIP().rank(model, find_groups(model, IMAGE), batches(*pictures(12), 5))


def test_bad_options_and_no_data_are_errors():
    with pytest.raises(OptionError, match="criterion 'chip', images: expected at least 1, got 0"):
        CHIP(images=0)
    for decimals in (-1, 16):
        with pytest.raises(OptionError, match=f"criterion 'chip', round_decimals: expected 0 to 15, got {decimals}"):
            CHIP(round_decimals=decimals)
    model = prepared(chain())
    with pytest.raises(RankingError, match="criterion 'chip': needs data"):
        CHIP().rank(model, find_groups(model, IMAGE), None)
