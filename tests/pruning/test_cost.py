"""Counted cost is what hooks on the layers count, what torch's own counter counts, and what the cost model says."""

from __future__ import annotations

import functools
import gc
import pickle
import weakref
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelled import JOINED, JOINED_BY_NAME, Joined
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from two_heads import IMAGES, TwoHeads, held
from zeroing import half, random_ranking

from pruning.cost import Cost, CostModel, count_cost
from pruning.errors import GraphError, UnknownNameError
from pruning.finding import find_groups
from pruning.inputs import Example
from pruning.models import build_model
from pruning.policy import ModelSpec
from pruning.surgery import prune

NETWORKS = {
    "resnet20": 32,
    "googlenet_cifar": 32,
    "mobilenet_v2": 64,
    "shufflenet_v2_x1_0": 64,
    "regnet_y_400mf": 64,
    "densenet121": 64,
    "resnet18": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "googlenet": 64,
}


def build(name: str, **options: Any) -> nn.Module:
    return build_model(ModelSpec(name=name, options=options)).eval().to("meta")


def macs_by_hooks(network: nn.Module, image: Tensor) -> int:
    """Sum over convolutions and linear layers: each output entry costs the weights that one of them sees."""
    total = 0

    def count(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
            total += inputs[0].numel() * layer.out_channels // layer.groups * prod(layer.kernel_size)
        else:
            total += output.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)

    layers = [m for m in network.modules() if hasattr(m, "in_channels") or isinstance(m, nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    network(image)
    for handle in handles:
        handle.remove()
    return total


def macs_by_torch(network: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "pixels"), NETWORKS.items())
def test_macs_are_those_of_hooks_and_of_torch(name: str, pixels: int) -> None:
    network, image = build(name), torch.empty(1, 3, pixels, pixels, device="meta")
    cost = count_cost(network, image)
    assert cost.macs == macs_by_hooks(network, image) == macs_by_torch(network, image)
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.Conv2d(4, 6, (1, 3), padding="same", dilation=2, padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 2, 2, stride=2)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)),
    ],
    ids=["grouped", "dilated", "transposed", "one dimension", "linear"],
)
def test_single_layers_are_counted(layer: nn.Module) -> None:
    image = torch.zeros(1, 4, 8, 8)
    assert count_cost(layer, image).macs == macs_by_hooks(layer.eval(), image) == macs_by_torch(layer, image)


@pytest.mark.parametrize("pixels", [64, 96])
def test_torch_counts_the_products_of_attention_too(pixels: int) -> None:
    image = torch.empty(1, 3, pixels, pixels, device="meta")
    vit, tokens = build("vit_b_16", image_size=pixels), (pixels // 16) ** 2 + 1
    assert macs_by_torch(vit, image) - count_cost(vit, image).macs == 12 * products(tokens, tokens, 768)

    swin, expected = build("swin_t"), 0
    for stage, blocks in enumerate((2, 2, 6, 2)):
        side = pixels // 4 // 2**stage
        padded = -(-side // 7) * 7  # windows of 7 × 7 cover the map
        expected += blocks * products(padded**2, 49, 96 * 2**stage)
    assert macs_by_torch(swin, image) - count_cost(swin, image).macs == expected


def products(tokens: int, window: int, channels: int) -> int:
    """Each token meets all of its window twice: to be weighed, and to be summed."""
    return 2 * tokens * window * channels


def test_the_cost_of_a_known_network_is_the_published_one() -> None:
    resnet50 = build_model(ModelSpec(name="resnet50", num_classes=1000))
    assert count_cost(resnet50, torch.zeros(1, 3, 224, 224)) == Cost(macs=4_089_184_256, params=25_557_032)


class Tokens(nn.Module):
    """Flattens an image into tokens, not contiguous in memory."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return (
            self.layer(tokens, tokens, tokens)[0]
            if isinstance(self.layer, nn.MultiheadAttention)
            else self.layer(tokens)
        )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_on_tokens_are_counted_frozen_or_not(bias: bool, frozen: bool) -> None:
    network = Tokens(nn.Linear(8, 5, bias=bias)).requires_grad_(not frozen)
    assert count_cost(network, torch.zeros(1, 8, 4, 4)).macs == 16 * 8 * 5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_projections_of_attention_are_counted_and_its_products_are_not(training: bool, frozen: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).requires_grad_(not frozen)
    assert count_cost(Tokens(attention).train(training), torch.zeros(1, 8, 4, 4)).macs == 16 * 4 * 8 * 8
    layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True).requires_grad_(not frozen)
    assert count_cost(Tokens(layer).train(training), torch.zeros(1, 8, 4, 4)).macs == 16 * (4 * 8 * 8 + 2 * 8 * 24)


def test_attention_across_two_sequences_is_counted() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.attention(tokens[:, :3], tokens, tokens + 1)[0]

    projections = 3 + 5 + 5 + 3  # of query, key, value and output, each as often as it has tokens
    assert count_cost(Across(), torch.zeros(1, 5, 8)).macs == projections * 8 * 8


def test_a_layer_costs_as_often_as_it_runs_in_eval_mode() -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.never, self.training_only = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.twice(x))
            return self.training_only(x) if self.training else x

    assert count_cost(Uses().train(), torch.zeros(1, 3, 5, 5)) == Cost(macs=2 * 25 * 9, params=27)


def test_a_functional_convolution_is_counted() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.zeros(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filters - self.filters.mean()) + F.conv2d(x, self.filters)

    assert count_cost(Functional(), torch.zeros(1, 3, 4, 4)) == Cost(macs=2 * 4 * 108, params=108)


def test_the_number_and_the_values_of_images_do_not_matter() -> None:
    network = build_model(ModelSpec(name="resnet20"))
    many = torch.full((7, 3, 32, 32), torch.nan)
    assert count_cost(network, many) == count_cost(network, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("example", [JOINED, JOINED_BY_NAME], ids=["in order", "by name"])
def test_networks_of_several_inputs_are_counted_and_cut(example: Example) -> None:
    network = Joined()
    assert count_cost(network, example).macs == 27 * 8 * 36 + 5 * 6 + 18 * 9 + 9 * 2
    groups = find_groups(network, example)
    widths = {"image": 4, "numbers": 3, "both": 5}
    foretold = CostModel(network, groups, example).cost(widths)
    assert foretold.macs == 27 * 4 * 36 + 5 * 3 + (4 + 3 + 4) * 5 + 5 * 2
    prune(network, widths, random_ranking(groups), groups=groups, example_input=example)
    assert count_cost(network, example) == foretold


def test_numbers_that_the_code_makes_are_no_obstacle() -> None:
    class Positions(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, torch.linspace(0, 1, 16).view(1, 1, 4, 4)], 1))

    assert count_cost(Positions(3, 5, 1), torch.zeros(1, 2, 4, 4)).macs == 3 * 5 * 16


def test_counting_leaves_the_network_and_the_random_state_as_found() -> None:
    network = TwoHeads().requires_grad_(False)
    network.drop.eval()
    before, random = held(network), torch.get_rng_state()
    count_cost(network, IMAGES)
    CostModel(network, find_groups(network, IMAGES), IMAGES)
    with pytest.raises(GraphError):
        count_cost(network, IMAGES[:, :2])
    assert held(network) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_an_image_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(GraphError, match=r"TwoHeads does not run on \(1, 2, 16, 16\): .*channel") as caught:
        count_cost(TwoHeads(), IMAGES[:, :2])
    assert "\n" not in str(caught.value)


# ── the cost model ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["resnet20", "shufflenet_v2_x1_0", "regnet_y_400mf", "densenet121", "vit_b_16"])
def modelled(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, CostModel]:
    name = request.param
    network = build(name, **({"image_size": 64} if name == "vit_b_16" else {}))
    image = torch.empty(1, 3, 64, 64, device="meta")
    return network, image, CostModel(network, find_groups(network, image), image)


def test_at_full_widths_it_is_the_counted_cost(modelled: tuple[nn.Module, Tensor, CostModel]) -> None:
    network, image, model = modelled
    assert model.full == model.cost({}) == count_cost(network, image)


@functools.cache
def resnet20_model() -> CostModel:
    network = build("resnet20")
    return CostModel(network, find_groups(network, IMAGES), IMAGES)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(data=st.data())
def test_many_widths_at_once_cost_what_each_costs(data: st.DataObject) -> None:
    model = resnet20_model()
    rows = data.draw(st.lists(st.tuples(*(st.integers(1, int(width)) for width in model.widths)), max_size=5))
    macs, params = model.costs(np.array(rows, dtype=np.int64).reshape(len(rows), len(model.groups)))
    assert macs.dtype == params.dtype == np.int64
    assert [Cost(*pair) for pair in zip(macs.tolist(), params.tolist(), strict=True)] == [
        model.cost(dict(zip(model.groups, row, strict=True))) for row in rows
    ]


@pytest.mark.parametrize("seed", range(3))
def test_any_widths_cost_what_the_cut_network_costs(modelled: tuple[nn.Module, Tensor, CostModel], seed: int) -> None:
    network, image, model = modelled
    cut = pickle.loads(pickle.dumps(network))
    groups = find_groups(cut, image)
    generator = torch.Generator().manual_seed(seed)
    widths = {name: int(torch.randint(1, group.width + 1, (), generator=generator)) for name, group in groups.items()}
    prune(cut, widths, random_ranking(groups), groups=groups, check=False)
    assert count_cost(cut, image) == model.cost(widths) != model.full


def test_the_products_multiply_out_to_the_macs(modelled: tuple[nn.Module, Tensor, CostModel]) -> None:
    cost = modelled[2]
    rng = np.random.default_rng(0)
    fixed, products = cost.products()
    assert all(0 < len(product.axes) <= 2 for product in products)
    for _ in range(5):
        widths = {name: int(rng.integers(1, full + 1)) for name, full in zip(cost.groups, cost.widths, strict=True)}
        removed = {name: full - widths[name] for name, full in zip(cost.groups, cost.widths.tolist(), strict=True)}
        macs = fixed
        for product in products:
            sizes = [size - sum(n * removed[name] for name, n in lost.items()) for size, lost in product.axes]
            macs += product.factor * prod(sizes)
        assert macs == cost.cost(widths).macs


def test_a_cost_of_a_million_million_is_exact() -> None:
    network, image = build("resnet18"), torch.empty(1, 3, 8192, 8192, device="meta")
    groups = find_groups(network, image)
    model = CostModel(network, groups, image)
    assert model.full.macs == macs_by_torch(network, image) > 2**40
    prune(network, half(groups), random_ranking(groups), groups=groups, check=False)
    assert model.cost(half(groups)).macs == macs_by_torch(network, image) > 2**38


def test_a_group_that_does_not_exist_is_told() -> None:
    network = TwoHeads()
    model = CostModel(network, find_groups(network, IMAGES), IMAGES)
    with pytest.raises(UnknownNameError, match="unknown channel group 'sten'; did you mean 'stem'"):
        model.cost({"sten": 3})


def test_it_is_small_plain_data_without_the_network() -> None:
    network = build_model(ModelSpec(name="resnet20"))
    alive = weakref.ref(network)
    model = CostModel(network, find_groups(network, IMAGES), IMAGES)
    del network
    gc.collect()
    assert alive() is None
    again = pickle.loads(pickle.dumps(model))
    assert again.cost({"conv1": 3}) == model.cost({"conv1": 3}) != model.full


class Standardised(nn.Conv2d):
    """Computes its filters at each call, as networks without batch norm do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Blurred(nn.Module):
    """A fixed filter in front of a convolution whose filters are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), Standardised(8, 6, 3), nn.Linear(6, 2)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = F.conv2d(x, self.blur, groups=x.shape[1])
        return self.fc(self.b(x).mean((2, 3)))


def test_fixed_and_computed_filters_cost_what_is_left_of_them() -> None:
    network, images = Blurred(), torch.randn(2, 3, 12, 12)
    groups = find_groups(network, images)
    assert groups.widths == {"a": 8, "b": 6}
    costs = CostModel(network, groups, images)
    assert costs.full.macs == 27 * 8 * 100 + 9 * 8 * 64 + 72 * 6 * 36 + 6 * 2
    prune(network, {"a": 5, "b": 3}, random_ranking(groups), groups=groups, example_input=images)
    assert count_cost(network, images) == costs.cost({"a": 5, "b": 3})
    assert count_cost(network, images).macs == 27 * 5 * 100 + 9 * 5 * 64 + 45 * 3 * 36 + 3 * 2
