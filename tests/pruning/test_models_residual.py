"""The residual networks: shortcuts as the papers draw them, layouts as the published checkpoints have them."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.layers import ChannelPad
from pruning.models import build_model
from pruning.policy import ModelSpec


def build(name, **options):
    torch.manual_seed(0)
    model = build_model(ModelSpec(name=name, options=options)).eval()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()
    return model


@pytest.mark.parametrize(("before", "after", "stride"), [(0, 0, 1), (2, 3, 1), (1, 0, 2), (0, 2, 3)])
def test_a_channel_pad_takes_every_nth_pixel_and_puts_zeros_around_the_channels(before, after, stride):
    images = torch.rand(2, 4, 7, 6)
    padded = ChannelPad(before, after, stride)(images)
    assert padded.shape == (2, before + 4 + after, -(-7 // stride), -(-6 // stride))
    for image, channel, row, column in torch.cartesian_prod(*map(torch.arange, padded.shape)).tolist():
        inside = before <= channel < before + 4
        expected = images[image, channel - before, row * stride, column * stride] if inside else 0.0
        assert padded[image, channel, row, column] == expected


def test_a_channel_pad_whose_numbers_were_lowered_pads_less():
    pad = ChannelPad(before=3, after=3)
    pad.before, pad.after = 1, 2
    assert pad(torch.ones(1, 2, 1, 1)).flatten().tolist() == [0, 1, 1, 0, 0]
    assert repr(pad) == "ChannelPad(before=1, after=2, stride=1)"


def option_a(x, width, stride):
    """A shortcut as the paper says: identity, `stride` apart, with the new channels half before and half behind."""
    y = torch.zeros(len(x), width, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    first = (width - x.shape[1]) // 2
    y[:, first : first + x.shape[1]] = x[..., ::stride, ::stride]
    return y


@pytest.mark.parametrize("options", [{}, {"widths": [6, 9, 14], "inner_widths": [3, 4, 5, 6, 7, 8, 9, 10, 11]}])
@torch.no_grad()
def test_resnet_equals_the_papers_formula(options):
    model = build("resnet20", **options)
    weights = model.state_dict()

    def unit(x, convolution, norm, stride=1):
        x = F.conv2d(x, weights[f"{convolution}.weight"], stride=stride, padding=1)
        statistics = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics)

    x = images = torch.rand(2, 3, 18, 18)
    x = unit(x, "conv1", "bn1").relu()
    for block in (f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (0, 1, 2)):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        inner = unit(x, f"{block}.conv1", f"{block}.bn1", stride).relu()
        outer = unit(inner, f"{block}.conv2", f"{block}.bn2")
        x = (outer + option_a(x, outer.shape[1], stride)).relu()
    expected = x.mean(dim=(2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("block", ["layer1.0", "layer1.1", "layer2.0", "layer3.8"])
@torch.no_grad()
def test_only_the_first_preactivated_block_of_a_stage_activates_its_shortcut(block):
    layer = build("preresnet56").get_submodule(block)
    images = torch.randn(2, layer.bn1.num_features, 6, 6)
    layer.conv2.weight.zero_()
    seen = layer.bn1(images).relu() if block.endswith(".0") else images
    if block == "layer2.0":
        seen = F.conv2d(seen, layer.shortcut.weight, stride=2)
    torch.testing.assert_close(layer(images), seen)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mobilenet_v2_cifar", {0: "Sequential", 1: "Sequential", 10: "Sequential", 16: "Sequential"}),
        ("mobilenet_v2_expand", {}),
    ],
)
def test_mobilenet_v2_adds_where_the_shape_stays_and_for_small_images_where_the_size_stays(name, kinds):
    stage_starts = {0, 1, 3, 6, 10, 13, 16}
    found = {number: type(block.shortcut).__name__ for number, block in enumerate(build(name).layers)}
    expected = {number: kinds.get(number, "NoneType" if number in stage_starts else "Identity") for number in range(17)}
    assert found == expected


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "resnet20-12fca82f.th"),
        ("resnet32", "resnet32-d509ac18.th"),
        ("resnet56", "resnet56-4bfd9763.th"),
        ("resnet20", "resnet20_cifar10_jpeg.th"),
        ("resnet56", "resnet56_cifar10_jpeg.th"),
    ],
)
def test_published_checkpoints_fit_key_by_key(name, file):
    path = Path(os.environ.get("PRUNING_TEST_DATA", "")) / file
    if not path.is_file():
        pytest.skip("PRUNING_TEST_DATA has no such checkpoint")
    published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = build(name)
    model.load_state_dict({key.removeprefix("module."): value for key, value in published.items()}, strict=True)
    assert torch.equal(model.linear.bias, published[next(key for key in published if key.endswith("linear.bias"))])
