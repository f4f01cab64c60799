"""Laws of a cut, over random networks: removing is zeroing, the outcome is the narrow network built from scratch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from two_heads import held
from zeroing import distance, random_ranking, randomise, zeroed

from pruning.cost import CostModel, count_cost
from pruning.finding import find_groups
from pruning.groups import ChannelGroups
from pruning.layers import ChannelPad
from pruning.surgery import prune

IMAGES = torch.randn(2, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)

# ── random networks ──────────────────────────────────────────────────────────────────────────────────────────────────
# A block is built from the width that comes in and its own sizes; `sizes` reads them off again, also after a cut.


class Block(nn.Module):
    """Maps `reads` channels to `makes` channels."""

    makes: int
    """Known when it is built; a cut does not tell."""

    def sizes(self) -> tuple[int, ...]:
        return ()


class Plain(Block):
    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.makes = nn.Conv2d(reads, makes, 3, padding=1), nn.BatchNorm2d(makes), makes

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def sizes(self) -> tuple[int, ...]:
        return (self.conv.out_channels,)


class Residual(Block):
    def __init__(self, reads: int, inner: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(reads, inner, 1, bias=False), nn.BatchNorm2d(inner, affine=False)
        self.second, self.makes = nn.Conv2d(inner, reads, 3, padding=1), reads

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.leaky_relu(self.norm(self.first(x)))) + x

    def sizes(self) -> tuple[int, ...]:
        return (self.first.out_channels,)


class Padded(Block):
    """A residual sum that widens, with zeros on the shortcut."""

    def __init__(self, reads: int, before: int, after: int) -> None:
        super().__init__()
        self.makes = before + reads + after
        self.conv, self.shortcut = nn.Conv2d(reads, self.makes, 3, padding=1), ChannelPad(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x) + self.shortcut(x))

    def sizes(self) -> tuple[int, ...]:
        return (self.shortcut.before, self.shortcut.after)


class Dense(Block):
    """A concatenation with what came in, as in DenseNet."""

    def __init__(self, reads: int, grows: int) -> None:
        super().__init__()
        self.conv, self.norm, self.makes = nn.Conv2d(reads, grows, 1), nn.PReLU(reads + grows), reads + grows

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.conv(x), x], dim=1))

    def sizes(self) -> tuple[int, ...]:
        return (self.conv.out_channels,)


class Depthwise(Block):
    def __init__(self, reads: int, multiplier: int) -> None:
        super().__init__()
        self.makes = reads * multiplier
        self.conv = nn.Conv2d(reads, self.makes, 3, padding=1, groups=reads)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(self.conv(x))

    def sizes(self) -> tuple[int, ...]:
        return (self.conv.out_channels // self.conv.in_channels,)


class Grouped(Block):
    def __init__(self, reads: int, groups: int, makes_each: int) -> None:
        super().__init__()
        self.makes = groups * makes_each
        self.conv, self.norm = nn.Conv2d(reads, self.makes, 1, groups=groups), nn.GroupNorm(groups, self.makes)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def sizes(self) -> tuple[int, ...]:
        return (self.conv.groups, self.conv.out_channels // self.conv.groups)


class Gate(Block):
    """Squeeze and excitation."""

    def __init__(self, reads: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite, self.makes = nn.Linear(reads, inner), nn.Linear(inner, reads), reads

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]

    def sizes(self) -> tuple[int, ...]:
        return (self.squeeze.out_features,)


class Shuffled(Block):
    """One half is convolved, then both are shuffled, as in ShuffleNet."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self.conv, self.makes = nn.Conv2d(reads // 2, reads // 2, 3, padding=1), reads

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.conv(right)], dim=1)
        images, channels, height, width = x.shape
        return x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, channels, height, width)


@dataclass(frozen=True)
class Plan:
    """Which blocks, with their sizes; the head flattens or averages, and has a hidden layer."""

    blocks: tuple[tuple[type[Any], tuple[int, ...]], ...]
    flattens: bool
    hidden: int


class Network(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.blocks, reads = nn.Sequential(), 3
        for kind, sizes in plan.blocks:
            self.blocks.append(kind(reads, *sizes))
            reads = self.blocks[-1].makes
        self.flattens = plan.flattens
        self.hidden = nn.Linear(reads * 36 if plan.flattens else reads, plan.hidden)
        self.norm, self.last = nn.BatchNorm1d(plan.hidden), nn.Linear(plan.hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        x = x.flatten(1) if self.flattens else x.mean((2, 3))
        return self.last(F.relu(self.norm(self.hidden(x))))

    def plan(self) -> Plan:
        blocks = tuple((type(block), block.sizes()) for block in self.blocks)
        return Plan(blocks, self.flattens, self.hidden.out_features)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    small = st.integers(2, 5)
    blocks, reads = [], 3
    for _ in range(draw(st.integers(1, 5))):
        groups = [count for count in (2, 3, 4) if reads % count == 0]
        kinds = [Plain, Residual, Padded, Dense, Gate] + [Grouped] * bool(groups) + [Shuffled] * (reads % 2 == 0)
        kind = draw(st.sampled_from(kinds + [Depthwise] * (reads < 10)))
        if kind is Grouped:
            sizes: tuple[int, ...] = (draw(st.sampled_from(groups)), draw(st.integers(1, 3)))
        elif kind is Padded:
            sizes = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        else:
            sizes = {Shuffled: (), Depthwise: (draw(st.integers(1, 2)),), Plain: (2 * draw(small),)}.get(
                kind, (draw(small),)
            )
        blocks.append((kind, sizes))
        reads = kind(reads, *sizes).makes
    return Plan(tuple(blocks), draw(st.booleans()), draw(small))


def build(plan: Plan) -> Network:
    torch.manual_seed(0)
    return randomise(Network(plan)).double().eval()


def random_widths(groups: ChannelGroups, seed: int) -> dict[str, int]:
    generator = torch.Generator().manual_seed(seed)
    return {name: int(torch.randint(1, group.width + 1, (), generator=generator)) for name, group in groups.items()}


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@EXAMPLES
@given(plan=plans(), seed=st.integers(0, 99))
def test_removing_channels_is_zeroing_them(plan: Plan, seed: int) -> None:
    network = build(plan)
    groups = find_groups(network, IMAGES)
    widths, ranking = random_widths(groups, seed), random_ranking(groups, seed)
    masked = zeroed(network, groups, {name: ranking.keep(name, width) for name, width in widths.items()})
    prune(network, widths, ranking, groups=groups, example_input=IMAGES)
    assert distance(network(IMAGES), masked(IMAGES)) < 1e-11  # float64; sums of other length round differently


@EXAMPLES
@given(plan=plans(), seed=st.integers(0, 99))
def test_the_outcome_is_the_narrow_network_built_from_scratch(plan: Plan, seed: int) -> None:
    network = build(plan)
    groups = find_groups(network, IMAGES)
    costs, widths = CostModel(network, groups, IMAGES), random_widths(groups, seed)
    prune(network, widths, random_ranking(groups, seed), groups=groups, check=False)
    narrow = Network(network.plan()).double().eval()
    assert repr(narrow) == repr(network)
    assert count_cost(narrow, IMAGES) == count_cost(network, IMAGES) == costs.cost(widths)
    narrow.load_state_dict(network.state_dict())
    assert torch.equal(narrow(IMAGES), network(IMAGES))


@EXAMPLES
@given(plan=plans(), seed=st.integers(0, 99))
def test_every_axis_loses_exactly_the_channels_that_go(plan: Plan, seed: int) -> None:
    network = build(plan)
    groups = find_groups(network, IMAGES)
    widths, before = random_widths(groups, seed), copy.deepcopy(network)
    kept = prune(network, widths, random_ranking(groups, seed), groups=groups, check=False)
    assert {name: len(indices) for name, indices in kept.items()} == {
        name: width for name, width in widths.items() if width < groups[name].width
    }
    lost: dict[tuple[str, int], int] = {}
    for name, group in groups.items():
        for part in group.slices:
            each = len(part.positions[0])
            axis = (part.tensor, part.axis)
            lost[axis] = lost.get(axis, 0) + each * (group.width - widths[name])
    for name, tensor in network.state_dict().items():
        full = before.state_dict()[name].shape
        assert tuple(tensor.shape) == tuple(size - lost.get((name, axis), 0) for axis, size in enumerate(full))


@EXAMPLES
@given(plan=plans())
def test_a_cut_to_full_width_changes_nothing(plan: Plan) -> None:
    network = build(plan)
    groups, before = find_groups(network, IMAGES), held(network)
    assert prune(network, groups.widths, random_ranking(groups), groups=groups, example_input=IMAGES) == {}
    assert held(network) == before


@EXAMPLES
@given(plan=plans())
def test_equal_networks_have_equal_groups_in_the_order_of_the_layers(plan: Plan) -> None:
    groups = find_groups(build(plan), IMAGES)
    assert find_groups(Network(plan).train(), IMAGES.float()[:1]) == groups
    layers = [name for name, _ in build(plan).named_modules()]
    order = [layers.index(name.partition("#")[0]) for name in groups]
    assert order == sorted(order)


@EXAMPLES
@given(widths=st.lists(st.integers(2, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_laws_hold_for_linear_networks(widths: list[int], seed: int) -> None:
    def perceptron(sizes: list[int]) -> nn.Module:
        layers = [
            layer
            for reads, makes in zip([5, *sizes], sizes, strict=False)
            for layer in (nn.Linear(reads, makes), nn.BatchNorm1d(makes), nn.Tanh())
        ]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 1)).double().eval()

    vectors = torch.randn(2, 5, dtype=torch.double)
    network = randomise(perceptron(widths))
    groups = find_groups(network, vectors)
    assert list(groups.widths.values()) == widths
    keep, ranking, costs = (
        random_widths(groups, seed),
        random_ranking(groups, seed),
        CostModel(network, groups, vectors),
    )
    masked = zeroed(network, groups, {name: ranking.keep(name, width) for name, width in keep.items()})
    prune(network, keep, ranking, groups=groups, example_input=vectors)
    narrow = perceptron(list(keep.values()))
    assert repr(network) == repr(narrow)
    assert count_cost(network, vectors) == count_cost(narrow, vectors) == costs.cost(keep)
    assert distance(network(vectors), masked(vectors)) < 1e-12  # float64
