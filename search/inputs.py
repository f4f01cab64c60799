"""What all trials of a sweep share, as one plain object that travels to every worker once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from pruning import (
    ChannelGroups,
    CostModel,
    CriterionSpec,
    ImageData,
    ModelSpec,
    Policy,
    Ranking,
    build_model,
    set_weights,
)
from search.config import Experiment


@dataclass(frozen=True)
class Baseline:
    """The network before any cut, as measured: validation accuracy in 0 to 1, cost of one image, latency of a batch."""

    accuracy: float
    loss: float
    macs: int
    params: int
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Return what was measured, by name."""
        values = {"accuracy": self.accuracy, "loss": self.loss, "macs": self.macs, "params": self.params}
        return values if self.latency_ms is None else {**values, "latency_ms": self.latency_ms}


@dataclass(frozen=True)
class Inputs:
    """Everything that a trial needs besides its policy. Nothing in it changes.

    Attributes:
        weights: the baseline's state dict, on the CPU.
        example: one image, `[1, channels, height, width]`, of the data's size.
        rankings: by `ranking_key`, each computed once.
        device: where trials run.
    """

    experiment: Experiment
    model: ModelSpec
    weights: Mapping[str, Tensor]
    data: ImageData
    groups: ChannelGroups
    cost: CostModel
    example: Tensor
    baseline: Baseline
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    device: str = "cpu"

    def network(self) -> nn.Module:
        """Return a new copy of the baseline network, on the CPU, in eval mode."""
        return copy.deepcopy(self._template)

    def ranking_of(self, policy: Policy) -> Ranking:
        """Return the ranking that a policy asks for."""
        return self.rankings[ranking_key(policy.criterion)]

    @cached_property
    def _template(self) -> nn.Module:
        return network_with(self.model, self.weights)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_template"}


def network_with(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """Build a network with given weights, in eval mode; the global random state is as found."""
    with torch.random.fork_rng(devices=[]):
        network = build_model(spec)
    set_weights(network, weights)
    return network.eval()


def ranking_key(criterion: CriterionSpec) -> str:
    """Return the key of a criterion with its options within one sweep."""
    return criterion.model_dump_json()
