"""HRank and CHIP on the published ResNet-20's maps of real images: repeated rows, weak and dead channels."""

import os
import tarfile
from pathlib import Path

import pytest
import torch

from pruning import ModelSpec, find_groups, load_data
from pruning.checkpoint import load_weights
from pruning.criteria import evaluating
from pruning.models import build_model
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
def maps(tmp_path_factory):
    """Return the maps of 4 images wherever a group is read."""
    place, root = Path(os.environ.get("PRUNING_TEST_DATA", "")), tmp_path_factory.mktemp("cifar")
    for file in ("cifar10_sample_png.tar.xz", "resnet20-12fca82f.th"):
        if not (place / file).is_file():
            pytest.skip(f"PRUNING_TEST_DATA names no folder with {file}")
    with tarfile.open(place / "cifar10_sample_png.tar.xz") as archive:
        archive.extractall(root, filter="data")
    model = build_model(ModelSpec(name="resnet20"))
    load_weights(model, place / "resnet20-12fca82f.th")
    keeps, groups = Keeps(), find_groups(model, torch.zeros(1, 3, 32, 32))
    with evaluating(model):
        images = load_data("image_folder", root=root, workers=0).train.subset(4, seed=0)
        observe(model, groups, images.batches(4), [Request(keeps)])
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
