"""What all trials of a sweep share, as one plain object that travels to every worker once."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning import (
    CRITERIA,
    AuxiliaryPlacement,
    ChannelGroups,
    CostModel,
    CriterionSpec,
    ImageData,
    LatencyModel,
    ModelSpec,
    Ranking,
    build_model,
    hash_weights,
    paper_groups,
    set_weights,
)
from search.config import Experiment
from search.errors import ExperimentError

Say = Callable[[str], None]
"""Takes one line of progress."""


def silent(_: str) -> None:
    """Say nothing."""


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
        blocks: the modules behind which auxiliary losses can sit, in their order; empty where none are asked for.
        rankings: by `ranking_key`, each computed once; those that are missing are made when they are asked for.
        device: where trials run.
        latency: predicts the latency of widths, where budgets are of it.
    """

    experiment: Experiment
    model: ModelSpec
    weights: Mapping[str, Tensor]
    data: ImageData
    groups: ChannelGroups
    cost: CostModel
    example: Tensor
    baseline: Baseline
    blocks: tuple[str, ...] = ()
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    device: str = "cpu"
    latency: LatencyModel | None = None

    def network(self) -> nn.Module:
        """Return a new copy of the baseline network, on the CPU, in eval mode."""
        return copy.deepcopy(self._template)

    @property
    def searched(self) -> ChannelGroups:
        """The groups whose widths are searched."""
        return self.groups.only(searched_groups(self.experiment, self.groups))

    @property
    def device_name(self) -> str:
        """See `device_name`."""
        return device_name(self.device)

    @property
    def facts(self) -> dict[str, str]:
        """What tells these inputs from others, by name, in words."""
        splits = {"train": self.data.train, "val": self.data.val, "test": self.data.test}
        return {
            "data.fingerprint": self.data.fingerprint,
            "data.images": ", ".join(f"{len(split)} {name}" for name, split in splits.items()),
            "weights.hash": self.weights_hash,
            "network": self.groups.signature,
        }

    @cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the weights."""
        return hash_weights(self.weights)

    @cached_property
    def _template(self) -> nn.Module:
        return network_with(self.model, self.weights)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_template"}


def device_name(device: str) -> str:
    """Return what this process computes on: `NVIDIA H200`, or the processor, as exactly as the system tells."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def network_with(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """Build a network with given weights, in eval mode; the global random state is as found."""
    with torch.random.fork_rng(devices=[]):
        network = build_model(spec)
    set_weights(network, weights)
    return network.eval()


def ranking_key(criterion: CriterionSpec, placement: AuxiliaryPlacement | None = None) -> str:
    """Return the key of a criterion with its options, and of the auxiliary losses it sees, within one sweep."""
    seen = "" if placement is None else placement.model_dump_json()
    return criterion.model_dump_json() + seen


def seen_placement(
    experiment: Experiment, criterion: CriterionSpec, placement: AuxiliaryPlacement | None
) -> AuxiliaryPlacement | None:
    """Return the auxiliary losses that a ranking depends on: None if neither criterion nor network know of them."""
    sees = CRITERIA.get(criterion.name).uses_auxiliary or experiment.auxiliary.schedule == "joint"  # type: ignore[attr-defined]
    return placement if sees else None


def searched_groups(experiment: Experiment, groups: ChannelGroups) -> tuple[str, ...]:
    """Return the groups whose widths are searched.

    Raises:
        ExperimentError: nothing to search.
        UnknownNameError: a pattern that matches no group.
    """
    patterns: list[str] = []
    for pattern in experiment.search.groups:
        if pattern != "paper":
            patterns.append(pattern)
            continue
        rules = paper_groups(experiment.model)
        if not rules:
            raise ExperimentError(f"search.groups: no paper's rule is known for '{experiment.model.name}'; use 'inner'")
        patterns.extend(rules)
    return groups.matching(tuple(patterns))
