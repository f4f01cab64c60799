"""Where a group stands in its network: by its name where that tells stage and block, else by its order."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from pruning import ModelSpec, build_model, count_cost, find_groups, input_shape
from pruning.errors import ModelError, UnknownNameError
from pruning.layout import Place, layout_of, split_name


def chain(num_classes: int = 10) -> nn.Module:
    """Convolutions without activation modules, and a user's network that does not tell its images."""
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1, 2), *pooled, nn.Linear(8, 5), nn.Linear(5, num_classes))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("layer1.0.conv1", ("layer1", "0", "conv1")),
        ("layer3.17.downsample.0", ("layer3", "17", "downsample.0")),
        ("layers.12.conv2", ("layers", "12", "conv2")),
        ("features.2.0.block.1.fc1", ("features.2", "0", "block.1.fc1")),
        ("features.8.0", ("features", "8", "0")),
        ("features.denseblock1.denselayer12.conv2", ("features.denseblock1", "denselayer12", "conv2")),
        ("trunk_output.block2.block2-1.f.a.0", ("trunk_output.block2", "block2-1", "f.a.0")),
        ("layer1.0.conv1#2", ("layer1", "0", "conv1#2")),
        ("features.7", None),
        ("conv1", None),
        ("stem.conv", None),
    ],
)
def test_a_name_tells_stage_block_and_role(name, split):
    assert split_name(name) == split
    assert split is None or ".".join(split) == name


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn_cifar", "regnet_y_400mf", "mobilenet_v3_small"])
def test_a_layout_has_what_the_network_has(name):
    spec = ModelSpec(name=name)
    state = torch.get_rng_state()
    layout = layout_of(spec)
    assert torch.equal(torch.get_rng_state(), state)
    network, example = build_model(spec), torch.zeros(1, *input_shape(spec))
    assert layout.groups == find_groups(network, example)
    assert layout.cost.full == count_cost(network, example)
    assert set(layout.places) == set(layout.groups) != set()
    assert len(set(layout.places.values())) == len(layout.groups)  # no two groups in one place


def test_blocks_of_a_stage_run_from_its_begin_to_its_end():
    places = layout_of(ModelSpec(name="resnet56")).places
    for stage in range(3):
        for block in range(9):
            assert places[f"layer{stage + 1}.{block}.conv1"] == Place(stage, "conv1", Fraction(block, 8))
    assert places["layer2.0.conv2"] == Place(1, "conv2", Fraction(0))
    assert places["conv1"] == Place(0, "", Fraction(1, 2))


def test_layers_without_blocks_are_staged_by_the_size_of_their_maps():
    places = layout_of(ModelSpec(name="vgg16_bn_cifar", options={"widths": [8, 9] * 6 + [8]})).places
    stages = [2, 2, 3, 3, 3]  # convolutions in front of each pooling
    expected = [
        Place(stage, "", Fraction(number, count - 1)) for stage, count in enumerate(stages) for number in range(count)
    ]
    assert list(places.values()) == expected


def test_a_lone_block_is_in_the_middle_of_its_stage():
    places = layout_of(ModelSpec(name="regnet_y_400mf")).places
    assert places["trunk_output.block1.block1-0.f.a.0"].depth == Fraction(1, 2)


def test_the_blocks_are_those_behind_which_losses_can_sit():
    assert layout_of(ModelSpec(name="resnet20")).blocks == tuple(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2))
    plain = layout_of(ModelSpec(name="test_layout:chain"), (3, 8, 8))
    assert plain.blocks == ()
    assert [place.stage for place in plain.places.values()] == [0, 1, 2]  # 8×8, 4×4, and vectors


def test_images_of_another_size_cost_more_and_stand_nowhere_else():
    small, large = layout_of(ModelSpec(name="resnet20")), layout_of(ModelSpec(name="resnet20"), (3, 64, 64))
    assert large.places == small.places
    assert large.cost.full.macs > 3.9 * small.cost.full.macs


def test_a_network_whose_images_nobody_told_is_refused():
    with pytest.raises(ModelError, match="model 'test_layout:chain': expected an attribute input_shape"):
        layout_of(ModelSpec(name="test_layout:chain"))
    with pytest.raises(UnknownNameError, match="did you mean 'resnet56'"):
        layout_of(ModelSpec(name="resnet65"))
