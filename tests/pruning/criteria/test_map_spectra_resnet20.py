"""HRank and CHIP on the published ResNet-20's maps of real images: repeated rows, weak and dead channels."""

import pytest
import torch

from pruning import find_groups
from pruning.criteria import evaluating
from pruning.spectra import nuclear_drops, ranks
from pruning.streaming import Request, observe

pytestmark = pytest.mark.data


class Keeps:
    def __init__(self):
        self.maps = []

    def see(self, reading):
        if not reading.repeated:
            self.maps.append(reading.maps.clone())


@pytest.fixture(scope="module")
def maps(resnet20, cifar):
    """Return the maps of 4 images wherever a group is read."""
    keeps, groups = Keeps(), find_groups(resnet20, torch.zeros(1, 3, 32, 32))
    with evaluating(resnet20):
        observe(resnet20, groups, cifar.train.subset(4, seed=0).batches(4), [Request(keeps)])
    return keeps.maps


def test_every_rank_is_that_of_a_call_for_the_map(maps):
    seen = set()
    for of_layer in maps:
        expected = [[float(torch.linalg.matrix_rank(one)) for one in image] for image in of_layer]
        assert ranks(of_layer).tolist() == expected
        seen.update(rank for image in expected for rank in image)
    assert len(seen) > 20  # of 33


def test_every_drop_is_that_of_an_svd_without_the_channel(maps):
    for of_layer in maps:
        drops = nuclear_drops(of_layer)
        for image, found in zip(of_layer.flatten(2).double(), drops, strict=True):
            norm = torch.linalg.svdvals(image).sum()
            for channel, drop in enumerate(found.tolist()):
                zeroed = image.clone()
                zeroed[channel] = 0
                expected = float(norm - torch.linalg.svdvals(zeroed).sum())
                assert drop == pytest.approx(expected, rel=1e-5, abs=1e-9 * float(norm))
