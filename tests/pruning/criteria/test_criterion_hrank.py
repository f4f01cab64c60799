import pytest
import torch
from small_networks import IMAGE, Residual, batches, chain, inputs_of, pictures, prepared
from torch import nn

from pruning.criteria import rank_together
from pruning.criteria.hrank import HRank
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(4)


def depthwise():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    )


def by_definition(model, group, images):
    """Return each channel's score from a rank for each map, summed over the distinct tensors that are read."""
    seen = inputs_of(model, images)
    distinct = {id(seen[part.layer]): (seen[part.layer], part) for part in group.readers}.values()
    scores = []
    for channel in range(group.width):
        score = 0.0
        for x, part in distinct:
            maps = x[:, list(part.positions[channel])]  # of a flattened map one number a place
            maps = maps[:, 0] if maps.dim() == 4 else maps[:, None]
            score += sum(int(torch.linalg.matrix_rank(one)) for one in maps) / len(maps)
        scores.append(score)
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [Residual, chain, depthwise])
def test_is_the_average_rank_of_the_maps_where_a_channel_is_read(build, dtype):
    model, (images, labels) = prepared(build()).to(dtype), pictures(12)
    images = torch.relu(images - 1).to(dtype)  # many zeros, so that ranks differ
    groups = find_groups(model, IMAGE.to(dtype))
    ranking = HRank().rank(model, groups, [(images, labels)])
    assert ranking.criterion == "hrank"
    for name, group in groups.items():
        assert ranking.scores[name].tolist() == pytest.approx(by_definition(model, group, images), rel=1e-12), name
    assert any(len(set(scores.tolist())) > 1 for scores in ranking.scores.values())


def test_a_channel_that_never_fires_is_last():
    model = prepared(chain())
    model[1].weight.data[2], model[1].bias.data[2] = 0, -1
    ranking = HRank().rank(model, find_groups(model, IMAGE), batches(*pictures(12), 5))
    assert ranking.scores["0"][2] == 0
    assert ranking.orders["0"][-1] == 2
    assert bool((ranking.scores["0"][[0, 1, 3, 4, 5]] > 0).all())


def test_a_channel_in_another_unit_has_the_same_rank():
    model, data = prepared(chain()).float(), [(images.float(), labels) for images, labels in batches(*pictures(12), 5)]
    groups = find_groups(model, IMAGE.float())
    before = HRank().rank(model, groups, data).scores["0"].tolist()
    model[1].weight.data[3] *= 2.0**-20
    model[1].bias.data[3] *= 2.0**-20
    assert HRank().rank(model, groups, data).scores["0"].tolist() == before


def test_looks_at_640_images_unless_told_otherwise():
    model, (images, labels) = prepared(chain()), pictures(12)
    groups = find_groups(model, IMAGE)
    images = images * (torch.rand(12, 1, 8, 1) > 0.6)
    few = HRank(images=5).rank(model, groups, batches(images, labels, 4))
    first = HRank(images=None).rank(model, groups, [(images[:5], labels[:5])])
    whole = HRank().rank(model, groups, batches(images, labels, 4))
    assert all(torch.equal(few.scores[name], first.scores[name]) for name in groups)
    assert not torch.equal(few.scores["0"], whole.scores["0"])
    assert HRank().images == 640


def test_shares_a_pass_with_others():
    model, data = prepared(Residual()), batches(*pictures(12), 5)
    groups = find_groups(model, IMAGE)
    both = rank_together({"all": HRank(), "few": HRank(images=3)}, model, groups, data)
    for key, images in (("all", None), ("few", 3)):
        alone = HRank(images=images).rank(model, groups, data)
        assert all(torch.equal(both[key].scores[name], alone.scores[name]) for name in groups)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_are_an_error_that_names_the_group(value):
    model = prepared(chain())
    model[1].bias.data[1] = value
    with pytest.raises(RankingError, match=r"criterion 'hrank', group '0': channels \[1\] have no finite score"):
        HRank().rank(model, find_groups(model, IMAGE), batches(*pictures(12), 5))


def test_bad_options_and_no_data_are_errors():
    with pytest.raises(OptionError, match="criterion 'hrank', images: expected at least 1, got 0"):
        HRank(images=0)
    model = prepared(chain())
    with pytest.raises(RankingError, match="criterion 'hrank': needs data"):
        HRank().rank(model, find_groups(model, IMAGE), None)
