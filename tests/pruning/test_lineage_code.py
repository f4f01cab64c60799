"""Numbers in attributes of the code, products of activations and bare weights: all of it is followed, or pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bodies import IMAGES, Body, Cases, check_case, check_groups, convolution
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import half, random_ranking, randomise

from pruning.finding import find_groups
from pruning.ranking import NestedRanking
from pruning.surgery import prune

CASES = Cases()
followed, pinned = CASES.followed, CASES.pinned


# ── numbers that follow ──────────────────────────────────────────────────────────────────────────────────────────────


@followed(lambda: {"sizes": [2, 6], "b": convolution(6, 8), "c": convolution(2, 8)}, **{"a": 2, "a#2": 6, "b": 8})
def split_by_sizes_of_a_list(net: Body, x: Tensor) -> Tensor:
    first, second = torch.split(x, net.sizes, dim=1)
    return net.b(second) * net.c(first)


@followed(lambda: {"sizes": (3, 5), "b": convolution(3, 8), "c": convolution(5, 8)}, **{"a": 3, "a#2": 5, "b": 8})
def split_by_sizes_of_a_tuple(net: Body, x: Tensor) -> Tensor:
    first, second = x.split(net.sizes, 1)
    return net.b(first) + net.c(second)


@followed(lambda: {"width": 4}, a=4, b=8)
def split_into_equal_parts(net: Body, x: Tensor) -> Tensor:
    first, second = x.split(net.width, dim=1)
    return net.b(torch.cat([second, first], dim=1))


@followed(lambda: {"whole": 8}, a=4, b=8)
def split_by_half_of_a_number(net: Body, x: Tensor) -> Tensor:
    first, second = x.split(net.whole // 2, dim=1)
    return net.b(torch.cat([second, first], dim=1))


@followed(lambda: {"width": 2, "c": convolution(4, 8), "d": convolution(4, 8)}, **{"a": 2, "a#2": 4, "c": 8})
def slice_of_twice_a_number(net: Body, x: Tensor) -> Tensor:
    return net.c(x[:, : 2 * net.width]) + net.d(x[:, 2 * net.width :])


@followed(lambda: {"width": 3, "c": convolution(3, 8), "d": convolution(5, 8)}, **{"a": 3, "a#2": 5, "c": 8})
def slices_up_to_a_number_and_from_it(net: Body, x: Tensor) -> Tensor:
    return net.c(x[:, : net.width]) + net.d(x[:, net.width :])


def three() -> dict[str, Any]:
    return {"first": 2, "last": 6, "c": convolution(2, 8), "d": convolution(4, 8), "e": convolution(2, 8)}


@followed(three, **{"a": 2, "a#2": 4, "a#3": 2, "c": 8})
def slice_between_two_numbers(net: Body, x: Tensor) -> Tensor:
    return net.c(x[:, : net.first]) + net.d(x[:, net.first : net.last]) + net.e(x[:, net.last :])


@followed(lambda: {"shape": (1, 8, 1, 1), "scale": nn.Parameter(torch.rand(8) + 0.5)}, a=8, b=8)
def weight_in_a_shape_of_the_code(net: Body, x: Tensor) -> Tensor:
    return net.b(x * net.scale.view(net.shape))


@followed(lambda: {"groups": 2}, a=4, b=8)
def shuffle_by_a_number_of_groups(net: Body, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    parts = x.view(images, net.groups, channels // net.groups, height, width)
    return net.b(parts.transpose(1, 2).reshape(images, channels, height, width))


@followed(lambda: {"length": 128, "mix": nn.Linear(128, 8)}, a=8, mix=8)
def flattened_to_a_length_of_the_code(net: Body, x: Tensor) -> Tensor:
    return net.mix(F.max_pool2d(x, 2).reshape(-1, net.length))[:, :, None, None]


# ── numbers that do not ──────────────────────────────────────────────────────────────────────────────────────────────


@pinned(lambda: {"width": 4, "b": convolution(4, 8)}, b=8, why="'width' is used by 'mul'")
def number_that_is_also_computed_with(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, : net.width] + x[:, net.width :]) * net.width


@pinned(lambda: {"b": convolution(4, 8)}, b=8, why="")
def slice_from_the_end(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, -4:])


@pinned(lambda: {"width": 4, "b": convolution(4, 8)}, b=8)
def slice_with_a_step(net: Body, x: Tensor) -> Tensor:
    return net.b(x[:, 0 : 2 * net.width : 2])


@followed(
    lambda: {"sizes": [2], "c": convolution(2, 8), "d": convolution(6, 8)}, a=2, c=8, pins={"a": "cannot be followed"}
)
def split_by_a_number_and_a_literal(net: Body, x: Tensor) -> Tensor:
    first, second = x.split([*net.sizes, 6], dim=1)
    return net.c(first) + net.d(second)


# ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@followed(lambda: {"c": convolution(8, 8), "d": convolution(8, 8)}, a=8, c=8, b=8)
def paths_stacked_and_weighed(net: Body, x: Tensor) -> Tensor:
    paths = torch.stack([net.c(x), net.d(x)], dim=1)
    weights = paths.mean((3, 4), keepdim=True).softmax(1)
    return net.b((paths * weights).sum(1))


@followed(lambda: {"c": convolution(8, 16)}, a=8, c=8, b=8)
def softmax_over_halves(net: Body, x: Tensor) -> Tensor:
    y = net.c(x)
    halves = y.view(y.shape[0], 2, -1, 8, 8)
    return net.b((halves * halves.softmax(1)).sum(1))


@followed(lambda: {"b": convolution(32, 8)}, a=8, b=8)
def pixel_unshuffle(net: Body, x: Tensor) -> Tensor:
    return net.b(F.pixel_unshuffle(x, 2))


@followed(lambda: {"up": nn.PixelShuffle(2), "down": nn.PixelUnshuffle(2)}, a=2, b=8)
def pixels_to_channels_and_back(net: Body, x: Tensor) -> Tensor:
    return net.b(net.down(net.up(x)))


@followed(lambda: {"windows": nn.Unfold(3, padding=1), "mix": nn.Linear(72, 8)}, a=8, mix=8)
def windows_of_places(net: Body, x: Tensor) -> Tensor:
    return net.mix(net.windows(x).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))


@followed(lambda: {"b": convolution(24, 8)}, a=8, b=8)
def repeated(net: Body, x: Tensor) -> Tensor:
    return net.b(x.repeat(1, 3, 1, 1))


@followed(lambda: {"b": convolution(16, 8)}, a=8, b=8)
def repeated_one_by_one(net: Body, x: Tensor) -> Tensor:
    return net.b(x.repeat_interleave(2, dim=1))


@followed(lambda: {"token": nn.Parameter(torch.randn(1, 1, 8)), "mix": nn.Linear(8, 8)}, a=8, mix=8)
def token_beside_places(net: Body, x: Tensor) -> Tensor:
    places = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([net.token.expand(x.shape[0], -1, -1), places], dim=1)
    return net.mix(tokens).mean(1)[:, :, None, None]


@followed(lambda: {"places": nn.Parameter(torch.randn(1, 8, 8, 8))}, a=8, b=8)
def weight_for_each_channel_and_place(net: Body, x: Tensor) -> Tensor:
    return net.b(x + net.places)


@followed(lambda: {"mix": nn.Linear(8, 8)}, a=8, mix=8)
def shape_of_another_tensor(net: Body, x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1)
    mixed = net.mix(rows)
    return mixed.flatten(0, 2).reshape_as(mixed).permute(0, 3, 1, 2)


@followed(lambda: {"unfold": nn.Unflatten(1, (2, 4))}, a=2, b=8, pins={})
def unflattened(net: Body, x: Tensor) -> Tensor:
    return net.b(x.unflatten(1, (-1, 4)).flatten(1, 2))


@followed(a=8, b=8)
def noise_of_the_codes_own(net: Body, x: Tensor) -> Tensor:
    return net.b(x * x.new_ones((x.shape[0], 1, 1, 1)))


# ── products of activations ──────────────────────────────────────────────────────────────────────────────────────────


def attention_layers() -> dict[str, Any]:
    return {"heads": 4, "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "inner": 8}


@followed(attention_layers, a=8, qkv=4, out=8)
def attention_by_products(net: Body, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    qkv = net.qkv(tokens).reshape(-1, 64, 3, net.heads, 2).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    weights = (query @ key.transpose(-2, -1) * 0.5).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(-1, 64, net.inner)
    return net.out(mixed).transpose(1, 2).unflatten(2, (8, 8))


@followed(attention_layers, a=8, qkv=4, out=8)
def attention_in_one_call(net: Body, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = net.qkv(tokens).view(-1, 64, 3, net.heads, 2).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return net.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (8, 8))


@followed(lambda: {"c": convolution(8, 8)}, a=8, c=8, b=8)
def einsum_along_channels(net: Body, x: Tensor) -> Tensor:
    means = net.c(x).mean((2, 3))
    return net.b(torch.einsum("nchw, nc -> nchw", net.c(x), means))


@followed(lambda: {"mask": convolution(8, 1)}, a=8, b=8, pins={"mask": "scales other channels"})
def context_of_all_places(net: Body, x: Tensor) -> Tensor:
    weights = net.mask(x).flatten(2).softmax(-1).unsqueeze(-1)
    context = x.flatten(2).unsqueeze(1) @ weights
    return net.b(x + context.view(x.shape[0], -1, 1, 1))


@pinned(lambda: {"c": convolution(8, 8)}, b=8, also="c")
def products_summed_over_channels(net: Body, x: Tensor) -> Tensor:
    likeness = torch.einsum("nchw, ncij -> nhwij", x, net.c(x)).mean((3, 4))
    return net.b(likeness.unsqueeze(1).expand(-1, 8, -1, -1))


# ── bare weights, and layers of somebody else's ──────────────────────────────────────────────────────────────────────


class Bare(nn.Module):
    """A convolution and a batch norm put to work by functions."""

    def __init__(self, reads: int, makes: int, groups: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(makes, reads // groups, 3, 3)),
            nn.Parameter(torch.randn(makes)),
        )
        self.gain, self.shift = nn.Parameter(torch.rand(makes)), nn.Parameter(torch.rand(makes))
        self.register_buffer("mean", torch.rand(makes))
        self.register_buffer("variance", torch.rand(makes) + 0.5)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1, groups=self.groups)
        return F.batch_norm(x, self.mean, self.variance, self.gain, self.shift, self.training)


@followed(lambda: {"bare": Bare(8, 6), "b": convolution(6, 8)}, a=8, bare=6, b=8)
def functions_with_weights(net: Body, x: Tensor) -> Tensor:
    return net.b(net.bare(x))


@followed(lambda: {"bare": Bare(8, 8, groups=4)}, a=4, b=8)
def functional_convolution_in_groups(net: Body, x: Tensor) -> Tensor:
    return net.b(net.bare(x))


class BareUp(nn.Module):
    """A transposed convolution in groups, put to work by a function with all arguments by position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.groups = nn.Parameter(torch.randn(8, 3, 2, 2)), 4

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, None, 2, 0, 0, self.groups)


@followed(lambda: {"up": BareUp(), "b": convolution(12, 8)}, a=4, b=8)
def functional_transposed_convolution_in_groups(net: Body, x: Tensor) -> Tensor:
    return net.b(net.up(x))


class SamePadding(nn.Conv2d):
    """Pads by a rule of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias)


@followed(lambda: {"c": SamePadding(8, 6, 3), "b": convolution(6, 8)}, a=8, c=6, b=8)
def subclass_that_reads_as_its_base(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x))


class Narrow(SamePadding):
    """Tried by itself: what is known of a class is kept."""


ALONE = "they can only be removed all at once"


@followed(
    lambda: {"one": convolution(8, 1), "c": Narrow(1, 6, 3), "b": Narrow(6, 8, 3)},
    {"one": ALONE},
    a=8,
    c=6,
    b=8,
)
def subclass_that_reads_one_channel(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(net.one(x)))


@followed(lambda: {"c": Narrow(8, 1, 3), "b": Narrow(1, 8, 3)}, {"c": ALONE}, a=8, b=8)
def subclass_that_makes_one_channel(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x))


class MixesOnRequest(nn.Conv2d):
    """One class, two behaviours."""

    def __init__(self, *args: Any, mixes: bool) -> None:
        super().__init__(*args)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight + 0.1 * self.weight.roll(1, 0) if self.mixes else self.weight
        return F.conv2d(x, filters, self.bias, padding=1)


@followed(
    lambda: {"c": MixesOnRequest(8, 8, 3, mixes=False), "b": MixesOnRequest(8, 8, 3, mixes=True)},
    {"c": "cannot be followed", "b": "cannot be followed"},
    a=8,
)
def subclass_that_mixes_filters_on_request(net: Body, x: Tensor) -> Tensor:
    return net.b(net.c(x))


class MixesFilters(nn.Conv2d):
    """Every filter has a part of the next one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + 0.1 * self.weight.roll(1, 0), self.bias, padding=1)


@pinned(lambda: {"b": MixesFilters(8, 8, 3)}, also="b")
def subclass_that_mixes_filters(net: Body, x: Tensor) -> Tensor:
    return net.b(x)


class Standardised(nn.Conv2d):
    """Standardises each filter over what it reads, and has a gain for each."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = (
            self.weight.mean((1, 2, 3), keepdim=True),
            self.weight.std((1, 2, 3), keepdim=True, correction=0),
        )
        return F.conv2d(x, self.gain * (self.weight - mean) / (deviation + 1e-8), self.bias, padding=1)


@pytest.mark.parametrize("name", CASES.networks)
def test_channels_are_followed_or_pinned_with_the_reason(name: str) -> None:
    check_groups(CASES.networks[name])


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
@pytest.mark.parametrize("name", CASES.networks)
def test_removing_is_zeroing(name: str, check: bool) -> None:
    check_case(CASES.networks[name], check=check)


def test_standardised_filters_are_standardised_over_what_is_left() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(convolution(3, 8), nn.ReLU(), Standardised(8, 6, 3), nn.Flatten(), nn.Linear(384, 2))
    network, stay = network.double().eval(), (1, 2, 4, 7)
    layer: Any = network[2]
    features = network[1](network[0](IMAGES))[:, stay]
    filters = layer.weight[:, stay]
    mean, deviation = filters.mean((1, 2, 3), keepdim=True), filters.std((1, 2, 3), keepdim=True, correction=0)
    convolved = F.conv2d(features, layer.gain * (filters - mean) / (deviation + 1e-8), layer.bias, padding=1)
    expected = network[4](convolved.flatten(1))

    groups = find_groups(network, IMAGES)
    assert groups.widths == {"0": 8, "2": 6}
    scores = torch.zeros(8)
    scores[list(stay)] = 1
    ranking = NestedRanking.from_scores("given", {"0": scores})
    assert prune(network, {"0": 4}, ranking, groups=groups, example_input=IMAGES) == {"0": stay}
    assert torch.allclose(network(IMAGES), expected, rtol=1e-10)


def test_a_number_that_code_computes_with_is_pinned() -> None:
    """`dim - part` does not follow a cut of `part`."""

    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.part = 8, 3
            self.a, self.own, self.fc = convolution(3, 8), convolution(3, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            first, rest = torch.split(self.a(x), [self.part, self.dim - self.part], dim=1)
            return self.fc(torch.cat([self.own(first), rest], dim=1).mean((2, 3)))

    network = Partial().double()
    groups = find_groups(network, IMAGES)
    assert groups.widths == {"own": 3}
    assert {pin.reason for pin in groups.pinned if pin.layer == "a"} == {
        "the code computes with 'part'",
        "'split' cannot be followed at 'split'",
    }
    prune(network, {"own": 1}, random_ranking(groups), groups=groups, example_input=IMAGES)


def test_where_code_can_be_read_in_two_ways_the_one_that_pins_less_is_taken() -> None:
    """Heads or their depth: the depth is summed over, so heads go; the shape alone does not tell."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 2
            self.a, self.q, self.k, self.v = convolution(3, 8), *(nn.Linear(8, 6) for _ in range(3))
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            places = self.a(x).flatten(2).transpose(1, 2)
            q, k, v = (
                layer(places).reshape(places.shape[0], places.shape[1], self.heads, -1).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            attended = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.fc(attended.transpose(1, 2).flatten(2).mean(1))

    network = randomise(Heads()).double()
    groups = find_groups(network, IMAGES)
    assert groups.widths == {"a": 8, "q": 2}
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert (network.heads, network.q.out_features) == (1, 3)


def test_channels_that_a_chain_of_shuffles_ties_to_one_can_only_go_at_once() -> None:
    class Shuffled(nn.Module):
        """Halves that are one, put side by side and shuffled again and again; sizes are those of the tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = convolution(3, 8), convolution(8, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            for _ in range(4):
                images, channels, height, width = x.size()
                first, second = x.chunk(2, dim=1)
                x = torch.cat([first, F.relu(second)], 1).view(images, 2, channels // 2, height, width)
                x = x.transpose(1, 2).contiguous().view(images, channels, height, width)
            return self.fc(self.b(x).mean((2, 3)))

    network = randomise(Shuffled()).double()
    groups = find_groups(network, IMAGES)
    assert groups.widths == {"b": 6}
    assert {pin.layer: (pin.width, pin.reason) for pin in groups.pinned}["a"] == (1, ALONE)
    prune(network, {"b": 3}, random_ranking(groups), groups=groups, example_input=IMAGES)
