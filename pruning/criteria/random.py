"""Random: the choice that every criterion has to beat."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import ScoreCriterion, register
from pruning.groups import ChannelGroup


@register("random")
class Random(ScoreCriterion):
    """A score drawn for each channel.

    Args:
        seed: another seed, another choice. A group's draw depends on the seed and the group's name alone, not on which
            other groups there are.
    """

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:  # noqa: ARG002, blind by intent
        """Return what is drawn."""
        return self.draw(group)

    def draw(self, group: ChannelGroup) -> Tensor:
        """Return uniform numbers in [0, 1), float64 `[channels]`."""
        digest = hashlib.sha256(f"{self.seed}/{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(group.width, generator=generator, dtype=torch.float64)
