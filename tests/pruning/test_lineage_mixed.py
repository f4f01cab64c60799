"""Operations over all channels: after a cut they are over the channels that are left, and the check knows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import distance, half, random_ranking, randomise

from pruning.cost import CostModel, count_cost, count_memory
from pruning.errors import SurgeryError
from pruning.finding import find_groups
from pruning.masking import masked_outputs
from pruning.surgery import prune

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
Middle = Callable[["Mixing", Tensor], Tensor]


class Mixing(nn.Module):
    """What is tried between two convolutions of any width."""

    def __init__(self, middle: Middle, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 6, 1), nn.Linear(6, 3)
        self.place = nn.Conv2d(2, 1, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.wide = nn.Conv1d(1, 1, 5, padding="same", padding_mode="circular", dilation=2)
        self.shares = nn.Softmax(dim=-3)
        self.local = nn.LocalResponseNorm(3, alpha=0.5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.middle(self, self.a(x)))).mean((2, 3)))


def spatial_attention(net: Mixing, x: Tensor) -> Tensor:
    """CBAM's: a gate for each place from the mean and the maximum over channels."""
    seen = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], dim=1)
    return x * torch.sigmoid(net.place(seen))


def layer_norm_by_hand(net: Mixing, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-6)
    return net.weight[:, None, None] * x + net.bias[:, None, None]


def response_norm(net: Mixing, x: Tensor) -> Tensor:
    """ConvNeXt V2's: each channel's size in parts of the mean over channels."""
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + x * (size / (size.mean(dim=1, keepdim=True) + 1e-6)) * net.weight.view(1, -1, 1, 1)


MIDDLES: dict[str, Middle] = {
    "spatial attention": spatial_attention,
    "layer norm by hand": layer_norm_by_hand,
    "response norm": response_norm,
    "softmax": lambda _, x: x.softmax(dim=1) * 8,
    "softmax from the end": lambda _, x: F.softmax(x, dim=-3) * 8,
    "normalize": lambda _, x: F.normalize(x, dim=1),
    "channels and places": lambda _, x: x - x.mean((1, 2, 3), keepdim=True),
    "standard deviation": lambda _, x: x / (x.std(1, keepdim=True) + 0.1),
    "sum": lambda _, x: x * x.sum(1, keepdim=True),
    "convolution along channels": lambda net, x: x * net.along(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None],
    "one that pads by name": lambda net, x: x * net.wide(x.mean((2, 3))[:, None]).view(x.shape[0], -1, 1, 1),
    "softmax by a layer": lambda net, x: net.shares(x) * 8,
    "local response norm": lambda net, x: net.local(x) * net.local(x),
    "largest": lambda _, x: x - x.amax(dim=1, keepdim=True),
}


def network_of(middle: Middle, width: int = 8) -> Mixing:
    torch.manual_seed(0)
    return randomise(Mixing(middle, width)).double().eval()


@pytest.mark.parametrize("name", MIDDLES)
def test_a_cut_network_is_the_narrow_one(name: str) -> None:
    network = network_of(MIDDLES[name])
    groups, whole = find_groups(network, IMAGES), network(IMAGES)
    assert groups.widths == {"a": 8, "b": 6}
    costs = CostModel(network, groups, IMAGES)
    kept = random_ranking(groups).keep("a", 5)
    narrow = network_of(MIDDLES[name], 5)
    narrow.load_state_dict(
        {
            key: value[:, list(kept)]
            if key == "b.weight"
            else value[list(kept)]
            if key in ("a.weight", "a.bias", "weight", "bias")
            else value
            for key, value in network.state_dict().items()
        }
    )
    masked = masked_outputs(network, groups, {"a": kept}, IMAGES)
    prune(network, {"a": 5}, random_ranking(groups), groups=groups, example_input=IMAGES)
    assert distance(network(IMAGES), narrow(IMAGES)) < 1e-12
    assert distance(network(IMAGES), whole) > 1e-3
    assert [part.shape for part in masked] == [whole.shape]
    assert count_cost(network, IMAGES) == costs.cost({"a": 5})
    assert count_memory(network, IMAGES) == costs.memory({"a": 5})
    network.train()(IMAGES).sum().backward()


def test_a_wrong_cut_of_such_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(spatial_attention)
    groups, before = find_groups(network, IMAGES), network(IMAGES)
    network.fc.register_forward_hook(lambda layer, _, output: output * (1 + (network.a.out_channels < 8)))
    with pytest.raises(SurgeryError, match="differs from the masked one"):
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert distance(network(IMAGES), before) == 0


def test_a_graph_of_its_own_in_training_is_forgotten() -> None:
    class Twofold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if self.training:
                x = x - x.mean(1, keepdim=True)
            return self.fc((x * x.mean(1, keepdim=True)).mean((2, 3)))

    network = randomise(Twofold()).double()
    groups = find_groups(network, IMAGES)
    assert [part.tensor for part in groups["a"].mixed] == ["%mean"]
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert network.a.out_channels == 4


def test_channels_and_places_on_one_axis_are_reduced_together() -> None:
    network = network_of(lambda _, x: x - x.flatten(1).mean(1)[:, None, None, None])
    groups = find_groups(network, IMAGES)
    prune(network, {"a": 5}, random_ranking(groups), groups=groups, example_input=IMAGES)
    assert network.a.out_channels == 5


def test_running_sums_over_channels_are_pinned() -> None:
    groups = find_groups(network_of(lambda _, x: x.cumsum(1)), IMAGES)
    assert set(groups.widths) == {"b"}
    assert "'cumsum' cannot be followed" in {pin.layer: pin.reason for pin in groups.pinned}["a"]


def test_every_layer_stays_in_its_mode() -> None:
    network = network_of(spatial_attention).train()
    network.b.eval()
    modes = [module.training for module in network.modules()]
    masked_outputs(network, find_groups(network, IMAGES), {"a": (0, 1, 2)}, IMAGES)
    assert [module.training for module in network.modules()] == modes


def test_a_variance_of_everything_is_pinned() -> None:
    groups = find_groups(network_of(lambda _, x: x * x.var(False)), IMAGES)
    assert set(groups.widths) == {"b"}
