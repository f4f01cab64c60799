"""Grouped convolutions: all groups are thinned equally where that is chosen, else whole groups go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import distance, half, random_ranking, randomise

from pruning.cost import CostModel, count_cost, count_memory
from pruning.errors import PolicyError, UnknownNameError
from pruning.finding import find_groups
from pruning.models import build_model
from pruning.policy import ModelSpec, Policy
from pruning.surgery import prune

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


class Keeping:
    """A ranking that keeps what it is told."""

    def __init__(self, **kept: tuple[int, ...]) -> None:
        self.kept = kept

    def keep(self, group: str, count: int) -> tuple[int, ...]:
        return self.kept[group]


class Network(nn.Module):
    """A grouped convolution from 12 channels to 8, in 4 groups, between plain ones."""

    def __init__(self, grouped: nn.Module | None = None, groups: int = 4) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.grouped = grouped or nn.Conv2d(12, 8, 3, padding=1, groups=groups)
        self.after, self.b, self.fc = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.after(self.grouped(F.relu(self.norm(self.a(x))))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


def network_of(*args: object) -> Network:
    torch.manual_seed(0)
    return randomise(Network(*args)).double().eval()


def test_by_default_whole_groups_go() -> None:
    groups = find_groups(network_of(), IMAGES)
    assert groups.widths == {"a": 4, "b": 6}
    assert groups.thinned == ()


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_every_group_is_thinned(layer: type[nn.Module]) -> None:
    network = network_of(layer(12, 8, 3, padding=1, groups=4))
    groups = find_groups(network, IMAGES, thinned=["grou*"])
    assert groups.widths == {"a": 3, "grouped": 2, "b": 6}
    assert groups.thinned == ("grouped",)
    costs = CostModel(network, groups, IMAGES)
    expected = copy.deepcopy(network)
    with torch.no_grad():  # in each of 4 groups the second of 3 channels is not read, the first of 2 not made
        expected.b.weight[:, [0, 2, 4, 6]] = 0
        if layer is nn.Conv2d:
            expected.grouped.weight[:, 1] = 0
        else:
            expected.grouped.weight[[1, 4, 7, 10]] = 0
    widths = {"a": 2, "grouped": 1}
    prune(network, widths, Keeping(a=(0, 2), grouped=(1,)), groups=groups, example_input=IMAGES)
    assert (network.grouped.in_channels, network.grouped.out_channels, network.grouped.groups) == (8, 4, 4)
    assert distance(network(IMAGES), expected(IMAGES)) < 1e-12
    assert count_cost(network, IMAGES) == costs.cost(widths)
    assert count_memory(network, IMAGES) == costs.memory(widths)
    network.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_one_group_makes_alone_is_not_thinned() -> None:
    network = network_of(nn.Conv2d(12, 8, 3, padding=1, groups=4), 4)
    network.grouped = nn.Conv2d(12, 4, 3, padding=1, groups=4).double()
    network.after, network.b = nn.BatchNorm2d(4).double(), nn.Conv2d(4, 6, 1).double()
    groups = find_groups(network, IMAGES, thinned=["grouped"])
    assert groups.widths == {"a": 3, "b": 6}
    assert "all at once" in {pin.layer: pin.reason for pin in groups.pinned}["grouped"]


def test_depthwise_convolutions_cannot_be_thinned() -> None:
    network = network_of(nn.Conv2d(12, 24, 3, padding=1, groups=12))
    network.after, network.b = nn.BatchNorm2d(24).double(), nn.Conv2d(24, 6, 1).double()
    with pytest.raises(UnknownNameError, match="grouped convolution 'grouped'"):
        find_groups(network, IMAGES, thinned=["grouped"])


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"grouped convolution 'gruoped'.*did you mean 'grouped'"):
        find_groups(network_of(), IMAGES, thinned=["gruoped"])


def test_groups_that_are_cut_otherwise_have_another_signature() -> None:
    network = network_of(nn.Conv2d(12, 12, 3, padding=1, groups=3), 3)
    network.after, network.b = nn.BatchNorm2d(12).double(), nn.Conv2d(12, 6, 1).double()
    whole, thinned = (find_groups(network, IMAGES, thinned=names) for names in ((), ("grouped",)))
    assert whole.signature != thinned.signature


def test_a_network_of_residual_blocks_chooses_by_layer() -> None:
    torch.manual_seed(0)
    network = randomise(build_model(ModelSpec(name="resnext50_32x4d"))).eval()
    images = torch.randn(2, 3, 32, 32)
    groups = find_groups(network, images, thinned=["layer3.*", "layer4.0.conv2"])
    widths = {name: width for name, width in groups.widths.items() if name.startswith(("layer2.0", "layer3.0"))}
    # Group convolutions of layer2 have 8 channels each, those of layer3 16; 32 groups of each.
    assert {name: widths[name] for name in ("layer2.0.conv1", "layer3.0.conv1", "layer3.0.conv2")} == {
        "layer2.0.conv1": 32,
        "layer3.0.conv1": 16,
        "layer3.0.conv2": 16,
    }
    foretold = CostModel(network, groups, images).cost(half(groups))
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=images)
    assert count_cost(network, images) == foretold
    assert (network.layer2[0].conv2.groups, network.layer3[0].conv2.groups) == (16, 32)


def test_a_policy_is_cut_as_it_says() -> None:
    groups = find_groups(network_of(), IMAGES, thinned=["grouped"])
    assert groups.thinnable == groups.thinned == ("grouped",)
    policy = Policy(model=ModelSpec(name="n"), network=groups.signature, widths={"a": 2}, thinned=groups.thinned)
    network = network_of()
    kept = prune(network, policy, Keeping(a=(0, 2)), example_input=IMAGES)
    assert kept == {"a": (0, 2)}
    assert (network.a.out_channels, network.grouped.groups) == (8, 4)


@pytest.mark.parametrize(("policy", "network"), [("grouped", ""), ("", "grouped")])
def test_a_policy_of_another_choice_is_refused(policy: str, network: str) -> None:
    one, other = (find_groups(network_of(), IMAGES, thinned=[name] if name else []) for name in (policy, network))
    found = Policy(model=ModelSpec(name="n"), network=one.signature, widths={"a": 2}, thinned=one.thinned)
    expected = f"policy.thinned: expected groups found with thinned {policy or 'none'}, got {network or 'none'}"
    with pytest.raises(PolicyError, match=f"^{expected}$"):
        prune(network_of(), found, Keeping(a=(0, 2)), groups=other, example_input=IMAGES)


def test_widths_are_those_of_the_choice() -> None:
    network = network_of()
    with pytest.raises(PolicyError, match="expected 1 to 3 channels, got 4"):
        prune(
            network,
            {"a": 4},
            Keeping(a=(0, 1, 2, 3)),
            groups=find_groups(network, IMAGES, thinned=["grouped"]),
            example_input=IMAGES,
        )


def test_groups_that_could_only_go_all_at_once_are_thinned() -> None:
    """The outputs of both groups are summed, so neither can go alone: a split attention's radix."""

    class Radix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2)
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.grouped(F.relu(self.a(x))).chunk(2, dim=1)
            return self.fc(F.relu(one + other).mean((2, 3)))

    network = randomise(Radix()).double()
    groups = find_groups(network, IMAGES)
    assert groups.thinned == ("grouped",)
    assert groups.widths == {"a": 4, "grouped": 6}
    assert find_groups(network, IMAGES, thinned=groups.thinned) == groups
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert (network.grouped.in_channels, network.grouped.out_channels, network.grouped.groups) == (4, 6, 2)
