"""Shapes that are told without a run are those of a run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.lineage.modules import POINTWISE
from pruning.lineage.shapes import shaped

sizes = st.integers(1, 9)


def check(layer: nn.Module, image: Tensor) -> None:
    """What is told is what a run gives; where a run fails, nothing is told."""
    told = shaped(layer, image)
    try:
        expected = layer(image)
    except (RuntimeError, ValueError):
        assert told is None
        return
    assert told is not None
    assert (told.shape, told.dtype, told.device.type) == (expected.shape, expected.dtype, "cpu")


@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 2]))
    each = st.tuples(*[st.integers(1, 4)] * axes)
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][axes - 1](
        4,
        data.draw(st.sampled_from([2, 6])),
        data.draw(each),
        stride=data.draw(each),
        padding=data.draw(st.tuples(*[st.integers(0, 3)] * axes)),
        dilation=data.draw(each),
        groups=groups,
    )
    channels, places = data.draw(st.sampled_from([3, 4])), data.draw(st.tuples(*[sizes] * axes))
    check(layer, torch.zeros(data.draw(st.integers(1, 3)), channels, *places))


@given(st.lists(sizes, min_size=1, max_size=4))
def test_linear_layers_and_layer_norms(shape: list[int]) -> None:
    for image in (torch.zeros(*shape, 5), torch.zeros(*shape, 4)):
        check(nn.Linear(5, 3), image)
        check(nn.LayerNorm(5), image)
    check(nn.LayerNorm(shape), torch.zeros(2, *shape))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(3, 6)], ids=repr)
def test_norms_of_channels(norm: nn.Module) -> None:
    for shape in ((2, 6, 4, 4), (2, 5, 4, 4)):
        check(norm, torch.zeros(shape))


@pytest.mark.parametrize("name", POINTWISE.split())
def test_what_works_number_by_number(name: str) -> None:
    layer = nn.Threshold(0.1, 20) if name == "Threshold" else getattr(nn, name)()
    if shaped(layer, torch.zeros(2, 3, 4, 4)) is not None:
        check(layer, torch.zeros(2, 3, 4, 4))
    assert (shaped(layer, torch.zeros(2, 3)) is None) == (name in ("Dropout1d", "Dropout2d", "Dropout3d"))


def test_in_place_the_input_itself_comes_out() -> None:
    image = torch.zeros(2, 3)
    assert shaped(nn.ReLU(inplace=True), image) is image
    assert shaped(nn.ReLU(), image) is not image


def test_a_subclass_and_padding_by_name_have_to_run() -> None:
    class Own(nn.Conv2d):
        pass

    assert shaped(Own(3, 4, 3), torch.zeros(1, 3, 8, 8)) is None
    assert shaped(nn.Conv2d(3, 4, 3, padding="same"), torch.zeros(1, 3, 8, 8)) is None
