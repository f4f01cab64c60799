import pytest
import torch
from torch import nn

from pruning.errors import RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice
from pruning.map_scores import MapScores
from pruning.streaming import Request, observe


def total(maps):
    return maps.sum(dim=(2, 3))


def scores(model, groups, images, size=2):
    watcher = MapScores("total", groups, total)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(size)]
    observe(model.eval(), groups, batches, [Request(watcher)])
    return watcher.ranking()


def group(*readers):
    each = tuple((channel,) for channel in range(3))
    return ChannelGroup("x", 3, False, (), (), tuple(Slice(f"{name}.weight", 1, each) for name in readers))


class Readers(nn.Module):
    """Two layers read one tensor, a third its square, a fourth is used twice, a fifth never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.idle = (nn.Conv2d(3, 3, 1) for _ in range(5))

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(x**2) + self.d(3 * x) + self.d(5 * x)


@pytest.fixture
def images():
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mean(maps):
    return total(maps).mean(dim=0).tolist()


def test_a_map_that_two_layers_read_counts_once_and_distinct_maps_are_summed(images):
    model = Readers().double()
    ranking = scores(model, ChannelGroups((group("a", "b"),)), images)
    assert ranking.criterion == "total"
    assert ranking.scores["x"].tolist() == pytest.approx(mean(images))
    both = scores(model, ChannelGroups((group("a", "b", "c"),)), images)
    assert both.scores["x"].tolist() == pytest.approx(mean(images + images**2))


def test_a_layer_that_is_used_twice_counts_with_the_mean(images):
    ranking = scores(Readers().double(), ChannelGroups((group("d"),)), images)
    assert ranking.scores["x"].tolist() == pytest.approx(mean(4 * images))


def test_a_group_that_nobody_reads_on_the_way_scores_zero(images):
    ranking = scores(Readers().double(), ChannelGroups((group("idle"),)), images)
    assert ranking.scores["x"].tolist() == [0.0] * 3
    assert ranking.orders["x"].tolist() == [0, 1, 2]


def test_each_group_has_its_own_scores(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    ranking = scores(model, find_groups(model, images[:1]), images)
    with torch.no_grad():
        assert ranking.scores["0"].tolist() == pytest.approx(mean(model[:2](images)))
        assert ranking.scores["2"].tolist() == pytest.approx(mean(model[:4](images)))


def test_a_score_that_is_not_finite_is_an_error(images):
    images[3, 1, 2, 2] = torch.nan
    with pytest.raises(RankingError, match=r"criterion 'total', group 'x': channels \[1\] have no finite score"):
        scores(Readers().double(), ChannelGroups((group("a"),)), images)
