"""Weights that are computed at each call: a cut is that of the network in which they are plain numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from zeroing import distance, half, random_ranking, randomise

from pruning.cost import CostModel, count_cost, count_memory
from pruning.errors import SurgeryError
from pruning.finding import find_groups
from pruning.lineage.computed import effective
from pruning.surgery import _replaced, prune

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """A chain of every kind of layer that weights can be computed for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.hidden, self.fc = nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.b(F.relu(self.norm(self.a(x)))))))
        return self.fc(F.relu(self.hidden(x.mean((2, 3)))))


LAYERS = ("a", "b", "up", "hidden", "fc")
WIDTHS = {"a": 2, "up": 4, "hidden": 10}
Apply = Callable[..., nn.Module]


def old_weight_norm(layer: nn.Module, **options: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


class Doubled(nn.Module):
    """A parametrisation of each number by itself."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight.abs()


def doubled(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


KINDS: dict[str, Apply] = {
    "new": weight_norm,
    "new, along the inputs": lambda layer: weight_norm(layer, dim=1),
    "new, one length": lambda layer: weight_norm(layer, dim=None),
    "old": old_weight_norm,
    "old, along the inputs": lambda layer: old_weight_norm(layer, dim=1),
    "old, one length": lambda layer: old_weight_norm(layer, dim=None),
    "by itself": doubled,
}


def network_with(apply: Apply) -> Network:
    torch.manual_seed(0)
    network = randomise(Network()).double().eval()
    for layer in LAYERS:
        apply(getattr(network, layer))
    return network


def plain(network: Network) -> Network:
    """Return a network of the same function whose weights are numbers."""
    torch.manual_seed(0)
    other = randomise(Network()).double().eval()
    for name in LAYERS:
        layer, twin = getattr(network, name), getattr(other, name)
        with torch.no_grad():
            layer(torch.zeros(1, *_input_shape(layer), dtype=torch.double))  # old weight norm computes when it runs
            twin.weight.copy_(layer.weight)
    return other


def _input_shape(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 4, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_a_cut_is_that_of_plain_weights(kind: str, check: bool) -> None:
    network = network_with(KINDS[kind])
    other = plain(network)
    assert distance(network(IMAGES), other(IMAGES)) < 1e-12
    for one in (network, other):
        groups = find_groups(one, IMAGES)
        assert groups.widths == WIDTHS
        costs = CostModel(one, groups, IMAGES)
        prune(one, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES, check=check)
        assert count_cost(one, IMAGES) == costs.cost(half(groups))
        assert count_memory(one, IMAGES) == costs.memory(half(groups))
    assert distance(network(IMAGES), other(IMAGES)) < 1e-12
    assert count_cost(network, IMAGES).macs == count_cost(other, IMAGES).macs
    assert network.a.out_channels == network.b.in_channels == 4
    network.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_the_weights_that_the_layers_apply(kind: str) -> None:
    network = network_with(KINDS[kind])
    groups, others = find_groups(network, IMAGES), find_groups(plain(network), IMAGES)
    for name in WIDTHS:
        assert torch.allclose(groups[name].filters(network), others[name].filters(plain(network)))
        assert torch.allclose(groups[name].read_weights(network), others[name].read_weights(plain(network)))


@pytest.mark.parametrize(
    ("apply", "why"),
    [(spectral_norm, "cannot be followed"), (orthogonal, "cannot be"), (nn.utils.spectral_norm, "cannot be followed")],
)
def test_other_computed_weights_are_pinned(apply: Apply, why: str) -> None:
    network = randomise(Network())
    apply(network.hidden)
    groups = find_groups(network, IMAGES.float())
    assert set(groups.widths) == {"a"}
    assert why in {pin.layer: pin.reason for pin in groups.pinned}["hidden"]


class Centred(nn.Module):
    """A parametrisation that mixes what each filter reads."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(1, keepdim=True)


def test_a_parametrisation_may_pin_one_side() -> None:
    network = randomise(Network())
    parametrize.register_parametrization(network.hidden, "weight", Centred())
    groups = find_groups(network, IMAGES.float())
    assert set(groups.widths) == {"a", "hidden"}  # not what it reads
    assert "its parametrisation cannot be cut" in {pin.layer: pin.reason for pin in groups.pinned}["up"]
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES.float())
    assert network.hidden.out_features == 5


def test_a_cut_that_fails_leaves_lengths_as_they_were() -> None:
    network = network_with(weight_norm)
    groups, before = find_groups(network, IMAGES), copy.deepcopy(network.state_dict())
    network.fc.register_forward_hook(lambda layer, _, output: output + (network.a.out_channels < 8))
    with pytest.raises(SurgeryError, match="differs from the masked one"):
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_fitted_values_are_not_lost_in_a_computed_weight() -> None:
    network = network_with(weight_norm)
    name = find_groups(network, IMAGES)["hidden"].makers[0].tensor
    weights = effective(network, name)
    with (
        pytest.raises(SurgeryError, match=r"hidden.*expected a weight that fitted values can replace"),
        _replaced(network, {name: weights}),
    ):
        pass
