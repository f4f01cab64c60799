"""Small networks around an operation that is tried: what becomes of the channels, and is a cut what zeroing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import distance, half, random_ranking, randomise, zeroed

from pruning.cost import CostModel, count_cost, count_memory
from pruning.finding import find_groups
from pruning.surgery import prune

Middle = Callable[["Body", Tensor], Tensor]
IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Convolution `a` and batch norm; whatever is tried, usually ending in convolution `b`; then a linear layer."""

    def __init__(self, middle: Middle, **layers: Any) -> None:
        super().__init__()
        self.a = convolution(3, 8)
        self.bn = nn.BatchNorm2d(8)
        self.b: Any = convolution(8, 8)
        self.fc = nn.Linear(8, 4)
        self.middle = middle
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, F.relu(self.bn(self.a(x))))
        return self.fc(x.mean((2, 3)))


def convolution(reads: int, makes: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(reads, makes, kernel, padding=kernel // 2, **options)


@dataclass(frozen=True)
class Case:
    middle: Middle
    layers: Callable[[], dict[str, Any]]
    widths: dict[str, int]
    pinned: dict[str, str]

    def network(self) -> Body:
        torch.manual_seed(0)
        return randomise(Body(self.middle, **self.layers())).double().eval()


@dataclass
class Cases:
    """The networks of a file, by name."""

    networks: dict[str, Case] = field(default_factory=dict)

    def followed(
        self, layers: Callable[[], dict[str, Any]] = dict, /, pins: dict[str, str] | None = None, **widths: int
    ) -> Callable[[Middle], Middle]:
        """Register a network whose channels are followed; `widths` are all its groups, `pins` the exceptions."""

        def register(middle: Middle) -> Middle:
            self.networks[middle.__name__] = Case(middle, layers, widths, {"fc": "the network's output"} | (pins or {}))
            return middle

        return register

    def pinned(
        self,
        layers: Callable[[], dict[str, Any]] = dict,
        /,
        why: str = "cannot be followed",
        also: str = "",
        **widths: int,
    ) -> Callable[[Middle], Middle]:
        """Register a network in which `a` (and `also`) cannot be cut; `widths` are the groups that stay."""

        def register(middle: Middle) -> Middle:
            reasons = {"fc": "the network's output", "a": why} | dict.fromkeys(also.split(), "")
            self.networks[middle.__name__] = Case(middle, layers, widths, reasons)
            return middle

        return register


def check_groups(case: Case) -> None:
    """Groups and pinned layers are those that were registered."""
    groups = find_groups(case.network(), IMAGES)
    assert groups.widths == case.widths
    assert {pin.layer for pin in groups.pinned} == set(case.pinned)
    assert all(case.pinned[pin.layer] in pin.reason for pin in groups.pinned)


def check_case(case: Case, *, check: bool) -> None:
    """A cut of half of every group is what zeroing its makers is, and costs what was foretold."""
    network = case.network()
    groups = find_groups(network, IMAGES)
    costs, ranking, widths = CostModel(network, groups, IMAGES), random_ranking(groups), half(groups)
    kept = {group: ranking.keep(group, width) for group, width in widths.items()}
    masked, whole = zeroed(network, groups, kept)(IMAGES), network(IMAGES)
    prune(network, widths, ranking, groups=groups, example_input=IMAGES, check=check)
    assert distance(network(IMAGES), masked) < 1e-12  # float64
    assert (distance(network(IMAGES), whole) > 1e-3) == bool(kept)
    assert count_cost(network, IMAGES) == costs.cost(widths)
    assert count_memory(network, IMAGES) == costs.memory(widths)
