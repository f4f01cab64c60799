"""The networks are the papers': parameters and multiply-accumulates, full and narrow, to the integer."""

from fractions import Fraction
from math import floor, prod

import pytest
import torch
from torch import nn

from pruning.models import build_model, input_shape
from pruning.policy import ModelSpec

HIDDEN = [32, 96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]  # MobileNet v2, 17 blocks
STAGES = [*[16] * 9, *[32] * 9, *[64] * 9]  # ResNet-56
VGG19 = [*[64] * 2, *[128] * 2, *[256] * 4, *[512] * 8]
V1 = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]


def kept(widths, rate):
    return [width - floor(Fraction(rate) * width) for width in widths]


def count(name, num_classes=10, **options):
    """Count by definition: every output element of a convolution or linear layer costs one filter's weights."""
    spec = ModelSpec(name=name, num_classes=num_classes, options=options)
    with torch.device("meta"):
        model, images = build_model(spec), torch.empty(2, *input_shape(spec))
    macs = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda layer, _, output: macs.append(prod(output.shape[1:]) * layer.weight[0].numel())
            )
    model(images)
    return sum(parameter.numel() for parameter in model.parameters()), sum(macs)


@pytest.mark.parametrize(
    ("name", "classes", "params", "macs"),
    [
        ("resnet18", 1000, 11_689_512, 1_814_073_344),
        ("resnet50", 1000, 25_557_032, 4_089_184_256),
        ("preresnet56", 10, 855_578, 125_747_840),
        ("vgg19_bn_cifar", 10, 20_040_522, 398_136_320),
        ("mobilenet_v1_cifar", 10, 3_217_226, 213_084_160),
        ("mobilenet_v1", 1000, 4_231_976, 568_740_352),
        ("mobilenet_v2_expand", 1000, 3_505_960, 313_619_328),
    ],
)
def test_full_networks_cost_what_dcp_publishes(name, classes, params, macs):
    assert count(name, classes) == (params, macs)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet20", "0.27", "40.55"),
        ("resnet32", "0.46", "68.86"),
        ("resnet56", "0.85", "125.49"),
        ("resnet110", "1.73", "252.89"),
        ("vgg16_bn_cifar", "14.73", "313.20"),
        ("googlenet_cifar", "6.17", "1521.76"),  # published as 1.52 G
    ],
)
def test_full_networks_cost_what_the_cifar_papers_publish_in_millions(name, params, macs):
    assert tuple(f"{number / 1e6:.2f}" for number in count(name)) == (params, macs)


@pytest.mark.parametrize(("rate", "params", "macs"), [("0.3", 607_754, 91_261_568), ("0.5", 430_634, 63_226_496)])
def test_narrow_preresnet_costs_what_dcp_publishes(rate, params, macs):
    assert count("preresnet56", inner_widths=kept(STAGES, rate)) == (params, macs)


@pytest.mark.parametrize(
    ("rate", "params", "macs"), [("0.3", 10_361_991, 198_741_788), ("0.4", 7_826_670, 147_225_536)]
)
def test_narrow_vgg19_costs_what_dcp_publishes(rate, params, macs):
    assert count("vgg19_bn_cifar", widths=[*kept(VGG19[:-1], rate), 512]) == (params, macs)


def test_narrow_mobilenet_v1_costs_what_dcp_publishes():
    assert count("mobilenet_v1_cifar", widths=[*kept(V1[:-2], "0.3"), 1024, 1024]) == (2_249_139, 121_716_672)
    assert count("mobilenet_v1", 1000, widths=[*kept(V1[:-1], "0.5"), 1024]) == (2_106_760, 162_854_144)


def test_narrow_mobilenet_v2_costs_what_dcp_publishes():
    assert count("mobilenet_v2_expand", 1000, inner_widths=kept(HIDDEN, "0.5")) == (2_601_528, 172_903_872)


def test_narrow_mobilenet_v2_for_small_images_is_smaller_by_the_published_factors():
    full, narrow = count("mobilenet_v2_cifar"), count("mobilenet_v2_cifar", inner_widths=kept(HIDDEN, "0.3"))
    factors = [before / after for before, after in zip(full, narrow, strict=True)]
    assert factors == pytest.approx([1.31, 1.36], rel=0.015)  # published as quotients of rounded numbers


def test_the_vgg19_that_dcp_adapt_found_is_smaller_by_the_published_factors():
    widths = [56, 64, 128, 115, 199, 177, 123, 52, 59, 46, 31, 37, 37, 44, 31, 512]
    full, narrow = count("vgg19_bn_cifar"), count("vgg19_bn_cifar", widths=widths)
    factors = [before / after for before, after in zip(full, narrow, strict=True)]
    assert factors == pytest.approx([15.58, 2.86], rel=0.015)


def test_stage_widths_make_a_narrow_network_too():
    params, macs = count("resnet20", widths=[8, 16, 32])
    full_params, full_macs = count("resnet20")
    assert full_params / 4 < params < full_params / 3.8  # convolutions by 4, batch norm and classifier by 2
    assert full_macs / 4 < macs < full_macs / 3.9
