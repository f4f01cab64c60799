"""Every operation is followed rightly or pinned: whatever groups come out, cutting them is zeroing their makers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bodies import IMAGES, Body, Cases, check_case, check_groups, convolution
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import distance, half, random_ranking, randomise, zeroed

from pruning.errors import GraphError
from pruning.finding import find_groups
from pruning.layers import ChannelPad
from pruning.surgery import prune

CASES = Cases()
followed, pinned = CASES.followed, CASES.pinned


# ── followed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@followed(a=4, b=8)
def chunk_and_swap(net: Body, x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return net.b(torch.cat([second, F.relu(first)], dim=1))


@followed(a=4, b=8)
def split_by_a_computed_size(net: Body, x: Tensor) -> Tensor:
    first, second = x.split(x.shape[1] // 2, dim=1)
    return net.b(torch.cat([second, first], dim=1))


@followed(lambda: {"b": convolution(4, 8)}, a=4, b=8)
def gated_half(net: Body, x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return net.b(first * torch.sigmoid(second))


@followed(a=8, b=8)
def flip(net: Body, x: Tensor) -> Tensor:
    return net.b(x.flip(1))


@followed(a=8)
def flip_under_a_sum(net: Body, x: Tensor) -> Tensor:
    return net.b(x) + x.flip(1)


@followed(a=8, b=8)
def roll_along_the_image(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.roll(x, shifts=(1, 2), dims=(2, 3)))


@followed(a=4, b=8)
def shuffle_by_views(net: Body, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    return net.b(x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, -1, height, width))


@followed(lambda: {"shuffle": nn.ChannelShuffle(4)}, a=2, b=8)
def shuffle_layer(net: Body, x: Tensor) -> Tensor:
    return net.b(net.shuffle(x))


@followed(lambda: {"b": convolution(16, 8)}, a=8, b=8)
def concatenated_with_itself(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.cat([x, x], dim=1))


@followed(lambda: {"c": convolution(8, 8)}, a=8, c=8)
def concatenated_along_the_image(net: Body, x: Tensor) -> Tensor:
    return net.c(torch.cat([net.b(x), x], dim=2))


@followed(lambda: {"gate": nn.Linear(8, 8)}, a=8, b=8)
def squeeze_and_excitation(net: Body, x: Tensor) -> Tensor:
    return net.b(x * torch.sigmoid(net.gate(x.mean((2, 3))))[:, :, None, None])


@followed(lambda: {"gate": convolution(8, 1)}, a=8, b=8, pins={"gate": "broadcast over other channels"})
def spatial_gate(net: Body, x: Tensor) -> Tensor:
    return net.b(x * torch.sigmoid(net.gate(x)))


@followed(a=8)
def one_convolution_used_twice(net: Body, x: Tensor) -> Tensor:
    return net.b(F.relu(net.b(x)))


@followed(lambda: {"c": convolution(8, 8), "d": convolution(8, 8)}, a=8, b=8, d=8)
def one_convolution_behind_two_others(net: Body, x: Tensor) -> Tensor:
    return net.d(F.relu(net.b(x))) + net.d(net.b(F.relu(net.c(x))))


@followed(lambda: {"c": convolution(8, 8)}, a=8, c=8)
def one_batch_norm_used_twice(net: Body, x: Tensor) -> Tensor:
    return net.c(F.relu(net.bn(net.b(x))))


@followed(a=8)
def residual_sum(net: Body, x: Tensor) -> Tensor:
    return x + net.b(x)


@followed(a=8)
def sums_in_place(net: Body, x: Tensor) -> Tensor:
    y = net.b(x)
    y += x
    return y.mul_(2.0)


@followed(lambda: {"pad": ChannelPad(3, 5), "b": convolution(8, 16), "fc": nn.Linear(16, 4)}, a=8, b=8)
def padded_shortcut(net: Body, x: Tensor) -> Tensor:
    return net.b(x) + net.pad(x)


@followed(lambda: {"c": convolution(8, 8)}, a=8, b=8)
def exponent_with_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.pow(x, torch.sigmoid(net.c(x))))


@followed(lambda: {"c": convolution(8, 8)}, a=8, b=8)
def clamped_by_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.clamp(net.c(x), min=x))


@followed(lambda: {"depthwise": convolution(8, 16, groups=8), "b": convolution(16, 8)}, a=8, b=8)
def depthwise_with_a_multiplier(net: Body, x: Tensor) -> Tensor:
    return net.b(net.depthwise(x))


@followed(lambda: {"grouped": convolution(8, 12, groups=4), "b": convolution(12, 8)}, a=4, b=8)
def grouped_convolution(net: Body, x: Tensor) -> Tensor:
    return net.b(net.grouped(x))


@followed(lambda: {"up": nn.ConvTranspose2d(8, 6, 2, 2), "b": convolution(6, 8)}, a=8, up=6, b=8)
def transposed_convolution(net: Body, x: Tensor) -> Tensor:
    return net.b(net.up(x))


@followed(lambda: {"up": nn.ConvTranspose2d(8, 12, 2, 2, groups=4), "b": convolution(12, 8)}, a=4, b=8)
def grouped_transposed_convolution(net: Body, x: Tensor) -> Tensor:
    return net.b(net.up(x))


@followed(lambda: {"norm": nn.GroupNorm(4, 8)}, a=4, b=8)
def group_norm(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.InstanceNorm2d(8)}, a=8, b=8)
def instance_norm_without_parameters(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.InstanceNorm2d(8, affine=True, track_running_stats=True)}, a=8, b=8)
def instance_norm(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.BatchNorm2d(8, affine=False)}, a=8, b=8)
def batch_norm_without_weights(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.LayerNorm(8), "mix": nn.Linear(8, 8)}, a=8, mix=8)
def layer_norm_over_channels(net: Body, x: Tensor) -> Tensor:
    return net.mix(net.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


@followed(lambda: {"slope": nn.PReLU(8)}, a=8, b=8)
def prelu(net: Body, x: Tensor) -> Tensor:
    return net.b(net.slope(x - 1))


@followed(lambda: {"wide": nn.Linear(8, 12), "narrow": nn.Linear(12, 8)}, a=8, wide=12, narrow=8)
def linear_on_channels_last(net: Body, x: Tensor) -> Tensor:
    return net.narrow(F.gelu(net.wide(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


@followed(lambda: {"mix": nn.Linear(8 * 16, 8)}, a=8, mix=8)
def flattened_into_a_linear_layer(net: Body, x: Tensor) -> Tensor:
    return net.mix(F.max_pool2d(x, 2).flatten(1))[:, :, None, None]


@followed(a=8, b=8)
def image_axes_merged_and_split(net: Body, x: Tensor) -> Tensor:
    images, channels = x.shape[0], x.shape[1]
    return net.b(x.view(images, channels, -1).view(images, channels, 8, 8))


@followed(lambda: {"c": convolution(8, 8)}, a=8)
def shaped_by_the_number_of_the_same_channels(net: Body, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.b(x + y).view(x.shape[0], y.shape[1], -1).view(-1, x.size(1), 8, 8) + x


@followed(a=8, b=8)
def slice_of_all(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, 0:8, 2:, ::2])


@followed(a=8)
def resized(net: Body, x: Tensor) -> Tensor:
    return net.b(F.interpolate(x, scale_factor=2)) + F.interpolate(x, size=(16, 16))


@followed(a=8, b=8)
def padded_along_the_image(net: Body, x: Tensor) -> Tensor:
    return net.b(F.pad(x, (1, 1, 2, 0)))


@followed(
    lambda: {
        "scale": nn.ParameterDict({"whole": torch.rand(8), "shaped": torch.rand(1, 8, 1, 1), "one": torch.rand(1)})
    },
    a=8,
    b=8,
)
def layer_scale(net: Body, x: Tensor) -> Tensor:
    scale = net.scale
    return net.b(
        x * scale["whole"][None, :, None, None] + scale["shaped"] * scale["one"] * scale["whole"].view(1, -1, 1, 1)
    )


class FrozenNorm(nn.Module):
    """A batch norm whose weight and bias are buffers, put to work with plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            tensor.reshape(1, -1, 1, 1) for tensor in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


@followed(lambda: {"norm": FrozenNorm()}, a=8, b=8)
def norm_made_of_buffers(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"unused": convolution(8, 8)}, a=8, b=8)
def layer_that_never_runs(net: Body, x: Tensor) -> Tensor:
    return net.b(x)


# ── pinned ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pinned(b=8, why="'roll' cannot be followed at 'roll'")
def roll_along_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.roll(x, 1, dims=1))


@followed(a=5, b=8, pins={"a": "the code says by a number which they are"})
def parts_up_to_and_from_a_literal(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.cat([x[:, 3:], x[:, :3]], dim=1))


@followed(a=6, b=8, pins={"a": "the code says by a number which they are"})
def parts_counted_from_the_end(net: Body, x: Tensor) -> Tensor:
    return net.b(torch.cat([x[:, -2:], x[:, :-2]], dim=1))


@pinned(lambda: {"b": convolution(4, 8)}, b=8, why="")
def slice_of_literal_length(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, :4])  # nothing reads the others


@pinned(b=8)
def index_by_a_buffer(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, torch.tensor([3, 1, 2, 0, 7, 6, 5, 4])])


@pinned(b=8)
def split_by_a_literal_size(net: Body, x: Tensor) -> Tensor:
    first, second = x.split(4, dim=1)
    return net.b(torch.cat([second, F.relu(first)], dim=1))


@pinned(lambda: {"c": convolution(6, 8)}, c=8)
def unequal_parts(net: Body, x: Tensor) -> Tensor:
    return net.c(x.split([2, 6], dim=1)[1])


@pinned(lambda: {"b": convolution(3, 8)}, b=8)
def chunks_that_do_not_divide(net: Body, x: Tensor) -> Tensor:
    return net.b(x.chunk(3, dim=1)[0])


@pinned(lambda: {"b": convolution(10, 8)}, b=8)
def padded_along_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(F.pad(x, (0, 0, 0, 0, 1, 1)))


@pinned(b=8)
def shifted_by_padding(net: Body, x: Tensor) -> Tensor:
    return net.b(F.pad(x, (0, 0, 0, 0, 1, -1)))


@pinned(b=8, why="'avg_pool1d' cannot be followed")
def pooled_along_channels(net: Body, x: Tensor) -> Tensor:
    rows = F.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1)
    return net.b(rows.transpose(1, 2).reshape(x.shape[0], -1, 8, 8))


@followed(lambda: {"w": nn.ParameterDict({"weight": torch.randn(8, 8, 3, 3)})}, a=8, w=8, b=8)
def functional_convolution(net: Body, x: Tensor) -> Tensor:
    return net.b(F.conv2d(x, net.w["weight"], padding=1))


@followed(lambda: {"c": convolution(8, 8)}, a=8, b=8)
def weight_borrowed_from_a_layer(net: Body, x: Tensor) -> Tensor:
    return F.conv2d(net.c(x), net.b.weight, padding=1) + net.b(x)


@pinned(lambda: {"mix": nn.Linear(512, 8)}, mix=8)
def view_with_a_literal_size(net: Body, x: Tensor) -> Tensor:
    return net.mix(x.view(-1, 512))[:, :, None, None]


@pinned(b=8)
def expanded_to_a_literal_size(net: Body, x: Tensor) -> Tensor:
    return net.b(x.expand(x.shape[0], 8, 8, 8))


@pinned(b=8, why="their number is used by 'mul' at 'mul'")
def scaled_by_the_number_of_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(x * x.shape[1] ** -0.5)


@pinned(b=8, why="their number is asserted at '_assert'")
def number_that_is_asserted(net: Body, x: Tensor) -> Tensor:
    torch._assert(x.shape[1] == 8, "eight channels")
    return net.b(x)


@pinned(lambda: {"c": convolution(8, 8)}, b=8, also="c", why="their number shapes others at 'view'")
def shaped_by_the_number_of_other_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x).view(-1, x.shape[1], 8, 8))


@pinned(lambda: {"c": convolution(8, 16)}, b=8, also="c", why="their number shapes others at 'split'")
def split_by_the_number_of_other_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x).split(x.shape[1], dim=1)[1])


@pinned(lambda: {"c": convolution(8, 1)}, b=8, also="c")
def expanded_to_the_number_of_other_channels(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x).expand(-1, x.size(1), -1, -1))


@pinned(b=8)
def channels_mixed_with_places(net: Body, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    return net.b(x.flatten(2).transpose(1, 2).reshape(images, channels, height, width))


@followed(lambda: {"b": convolution(2, 8)}, a=2, b=8)
def pixel_shuffle(net: Body, x: Tensor) -> Tensor:
    return net.b(F.pixel_shuffle(x, 2))


@pinned(lambda: {"norm": nn.CrossMapLRN2d(3)}, b=8, why="'CrossMapLRN2d' cannot be followed at 'norm'")
def cross_map_response_norm(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.GroupNorm(4, 8, affine=False)}, a=4, b=8)
def group_norm_that_knows_only_numbers(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(x))


@followed(lambda: {"norm": nn.LayerNorm(8, elementwise_affine=False), "mix": nn.Linear(8, 8)}, a=8, mix=8)
def layer_norm_that_knows_only_a_number(net: Body, x: Tensor) -> Tensor:
    return net.mix(net.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


@followed(lambda: {"norm": nn.RMSNorm(8), "mix": nn.Linear(8, 8)}, a=8, mix=8)
def rms_norm_over_channels(net: Body, x: Tensor) -> Tensor:
    return net.mix(net.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class RMSNorm2d(nn.RMSNorm):
    """Over axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.eps).movedim(-1, 1)


@followed(
    lambda: {"one": convolution(8, 1), "first": RMSNorm2d(1), "c": convolution(1, 8), "norm": RMSNorm2d(8)},
    {"one": "cannot be followed"},
    a=8,
    c=8,
    b=8,
)
def rms_norm_of_ones_own_over_axis_1(net: Body, x: Tensor) -> Tensor:
    return net.b(net.norm(net.c(net.first(net.one(x)))))


class StandardisedConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, centred, self.bias, padding=1)


@pinned(lambda: {"b": StandardisedConvolution(8, 8, 3)}, why="'StandardisedConvolution' cannot be followed", also="b")
def subclass_with_a_forward_of_its_own(net: Body, x: Tensor) -> Tensor:
    return net.b(x)


def tied() -> dict[str, nn.Module]:
    first, second = convolution(8, 8), convolution(8, 8)
    second.weight = first.weight
    return {"b": first, "c": second, "d": convolution(8, 8)}


@pinned(tied, d=8, why="'b.weight' is also 'c.weight'", also="b c")
def two_layers_with_one_weight(net: Body, x: Tensor) -> Tensor:
    return net.d(net.c(net.b(x)))


class Constant(nn.Module):
    """Multiplies by a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.arange(1.0, 9.0).view(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.numbers


@pinned(lambda: {"constant": Constant()}, b=8, why="it meets what no rule follows at 'mul'")
def constant_for_each_channel(net: Body, x: Tensor) -> Tensor:
    return net.b(net.constant(x))


@pinned(
    lambda: {"query": nn.Linear(8, 8), "out": nn.Linear(8, 8)}, also="query", why="'matmul' cannot be followed", out=8
)
def attention(net: Body, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    weights = (net.query(tokens) @ tokens.transpose(1, 2)).softmax(-1)
    return net.out(weights @ tokens).transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize("name", CASES.networks)
def test_channels_are_followed_or_pinned_with_the_reason(name: str) -> None:
    check_groups(CASES.networks[name])


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
@pytest.mark.parametrize("name", CASES.networks)
def test_removing_is_zeroing(name: str, check: bool) -> None:
    check_case(CASES.networks[name], check=check)


def sequential(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise(nn.Sequential(*layers)).double().eval()


def test_one_dimensional_convolutions_are_followed() -> None:
    network = sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3),
        nn.Flatten(),
        nn.Linear(30, 5),
    )
    check_cut(network, torch.randn(2, 3, 16, dtype=torch.double), {"0": 8, "4": 6})


def test_three_dimensional_convolutions_are_followed() -> None:
    layers = (nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(8 * 9, 5))
    check_cut(sequential(*layers), torch.randn(2, 3, 4, 8, 8, dtype=torch.double), {"0": 8})


@pytest.mark.parametrize(
    "pool",
    [
        nn.LPPool3d(2, 2),
        nn.ReflectionPad3d(1),
        nn.ReplicationPad3d(1),
        nn.CircularPad3d(1),
        nn.ConstantPad3d(1, 0.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_volumes_are_pooled_and_padded(pool: nn.Module) -> None:
    layers = (nn.Conv3d(3, 8, 3), pool, nn.Conv3d(8, 6, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5))
    check_cut(sequential(*layers), torch.randn(2, 3, 6, 6, 6, dtype=torch.double), {"0": 8, "2": 6})


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.adaptive_max_pool3d(x[:, :, None], (1, 2, 2)).squeeze(2),
        lambda x: F.lp_pool3d(x[:, :, None], 2, (1, 2, 2)).squeeze(2),
        lambda x: F.lp_pool1d(x.flatten(2), 2, 2).unflatten(2, (8, 4)),
    ],
    ids=["adaptive_max_pool3d", "lp_pool3d", "lp_pool1d"],
)
def test_functions_that_pool_rows_and_volumes_are_followed(pool: Callable[[Tensor], Tensor]) -> None:
    check_cut(randomise(Body(lambda net, x: net.b(pool(x)))).double().eval(), IMAGES, {"a": 8, "b": 8})


def test_vectors_are_followed() -> None:
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1))
    check_cut(sequential(*layers), torch.randn(2, 6, dtype=torch.double), {"0": 8, "3": 7})


def check_cut(network: nn.Module, images: Tensor, widths: dict[str, int]) -> None:
    groups = find_groups(network, images)
    assert groups.widths == widths
    ranking = random_ranking(groups)
    kept = {name: ranking.keep(name, keep) for name, keep in half(groups).items()}
    masked = zeroed(network, groups, kept)
    prune(network, half(groups), ranking, groups=groups, example_input=images)
    assert distance(network(images), masked(images)) < 1e-12


class Tail(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.fc = convolution(3, 8), convolution(8, 8), nn.Linear(8, 4)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass
class Outputs:
    logits: Tensor
    features: Tensor


@pytest.mark.parametrize(
    "wrap",
    [tuple, list, lambda parts: {"logits": parts[0], "features": [parts[1]]}, lambda parts: Outputs(*parts)],
    ids=["tuple", "list", "dictionary", "dataclass"],
)
def test_every_output_is_pinned_and_proved(wrap: Callable[..., Any]) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        return wrap([net.fc(net.b(F.relu(x)).mean((2, 3))), F.relu(x)])

    torch.manual_seed(0)
    network = Tail(forward).double().eval()
    groups = find_groups(network, IMAGES)
    assert groups.widths == {"b": 8}
    assert {pin.layer for pin in groups.pinned} == {"a", "fc"}
    check_cut(network, IMAGES, {"b": 8})


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = convolution(3, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.a(x) * mask


class OptionalInput(TwoInputs):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.a(self.a(x)[:, :3]) if mask is None else self.a(x) * mask


class DependsOnData(TwoInputs):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


def test_a_second_input_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match="expected one input without a default, got another: 'mask'"):
        find_groups(TwoInputs(), IMAGES.float())


def test_an_input_with_a_default_stays_at_it() -> None:
    assert [pin.layer for pin in find_groups(OptionalInput(), IMAGES.float()).pinned] == ["a"]


def test_control_flow_on_data_is_refused_in_one_line() -> None:
    with pytest.raises(GraphError, match=r"^DependsOnData: cannot be traced: .*control flow") as caught:
        find_groups(DependsOnData(), IMAGES.float())
    assert "\n" not in str(caught.value)


def test_an_image_that_does_not_fit_names_the_layer() -> None:
    with pytest.raises(GraphError, match=r"^Sequential, at '0': Invalid channel dimensions"):
        find_groups(nn.Sequential(convolution(3, 8)), torch.zeros(1, 5, 8, 8))


class HoldsActivations(nn.Module):
    """Keeps its last feature map, as networks do whose loss looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = convolution(3, 8), convolution(8, 4)
        self.held: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.held = self.a(x)
        return self.b(self.held)


def test_a_network_that_holds_on_to_activations_is_copied() -> None:
    network = HoldsActivations()
    network(IMAGES.float())
    held = network.held
    assert find_groups(network, IMAGES.float()).widths == {"a": 8}
    assert network.held is held


def test_a_network_that_cannot_be_copied_says_so() -> None:
    network = nn.Sequential(convolution(3, 8))
    network.reader = (line for line in ())
    with pytest.raises(GraphError, match=r"^Sequential: cannot be copied: cannot pickle 'generator' object"):
        find_groups(network, IMAGES.float())
