"""Networks with their groups and their foretold costs, to be held against what a cut network is counted at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import random_ranking

from pruning.cost import CostModel, count_memory
from pruning.finding import find_groups
from pruning.groups import ChannelGroups
from pruning.inputs import Example
from pruning.models import build_model
from pruning.policy import ModelSpec
from pruning.surgery import prune

NETWORKS = {
    "resnet20": 32,
    "mobilenet_v2": 64,
    "shufflenet_v2_x1_0": 64,
    "googlenet_cifar": 32,
    "densenet121": 64,
    "convnext_tiny": 64,
    "vit_b_16": 64,
    "swin_t": 64,
}


def build(name: str) -> nn.Module:
    return build_model(ModelSpec(name=name, options={"image_size": 64} if name == "vit_b_16" else {})).eval()


def image_of(pixels: int) -> Tensor:
    return torch.zeros(1, 3, pixels, pixels)


class Step(nn.Module):
    """A network of one function."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Joined(nn.Module):
    """An image, a table of numbers for each image, and a word."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers, self.words = nn.Conv2d(3, 8, 3), nn.Linear(5, 6), nn.Embedding(7, 4)
        self.both, self.fc = nn.Linear(18, 9), nn.Linear(9, 2)

    def forward(self, image: Tensor, numbers: Tensor, word: Tensor, *, scale: float = 1.0) -> Tensor:
        parts = [F.relu(self.image(image)).mean((2, 3)), F.relu(self.numbers(numbers)), self.words(word)]
        return self.fc(F.relu(self.both(torch.cat(parts, 1)))) * scale


JOINED = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
JOINED_BY_NAME = {**dict(zip(("image", "numbers", "word"), JOINED, strict=True)), "scale": 2.0}


class Modelled:
    """A network, its groups and its costs."""

    def __init__(self, network: nn.Module, example: Example, groups: ChannelGroups | None = None) -> None:
        self.network, self.example = network, example
        self.groups = find_groups(network, example) if groups is None else groups
        self.costs = CostModel(network, self.groups, example)

    def check(self, widths: dict[str, int]) -> None:
        """What was foretold for some widths is what the cut network is counted at."""
        cut = copy.deepcopy(self.network)
        prune(cut, widths, random_ranking(self.groups), groups=self.groups, check=False)
        assert count_memory(cut, self.example) == self.costs.memory(widths)

    def check_narrow(self, narrowest: int = 1) -> None:
        """Check from full widths down to the narrowest, and widths that differ from group to group."""
        for narrow in (None, *range(3, narrowest - 1, -1)):
            self.check({name: min(narrow or group.width, group.width) for name, group in self.groups.items()})
        groups = enumerate(self.groups.values())
        self.check({group.name: min(narrowest + index, group.width) for index, group in groups})
