"""One trial, as its own specification: cut, recalibrate, fine-tune, measure. No Ray, no MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning import (
    AuxiliaryLosses,
    Cost,
    ImageSplit,
    Kept,
    Policy,
    compare_latency,
    count_cost,
    draw_weights,
    evaluate,
    fine_tune,
    measure_latency,
    prune,
    recalibrate,
    set_weights,
)
from search.heads import with_heads
from search.inputs import Inputs
from search.rankings import policy_ranking
from search.results import Metrics


class Report(Protocol):
    """Takes each measurement, and a way to get what the trial needs to go on from there."""

    def __call__(self, metrics: Metrics, snapshot: Callable[[], dict[str, Any]], /) -> None:
        """Receive a measurement; raise to end the trial early."""
        ...


@dataclass(frozen=True)
class Outcome:
    """A network that was cut and fine-tuned, which channels stayed, and the last measurement."""

    network: nn.Module
    kept: Kept
    metrics: Metrics


def run_trial(policy: Policy, inputs: Inputs, report: Report, resume: Mapping[str, Any] | None = None) -> Outcome:
    """Cut the baseline as `policy` says and fine-tune it; report after the cut and after every epoch.

    Equal arguments give equal metrics on a CPU. Whoever runs the trial ends it early by raising from `report`. The test
    split stays closed.

    Args:
        policy: what to cut and how to recover.
        inputs: what all trials share; not changed.
        report: called with each measurement.
        resume: a snapshot that `report` got earlier; the trial goes on after it.

    Raises:
        PruningError: the policy does not fit, or training broke down.
    """
    clock = _Clock(resume)
    network, auxiliary = _uncut(policy, inputs)
    kept = prune(network, policy, policy_ranking(inputs, policy), groups=inputs.groups, example_input=inputs.example)
    train, recipe = inputs.data.train, policy.recipe
    if auxiliary is not None:
        auxiliary = auxiliary.for_network(network, inputs.example, seed=policy.seed)
        auxiliary.heads.to(inputs.device)
    if recipe.from_scratch:
        draw_weights(network, policy.seed)
    network.to(inputs.device)
    if resume is not None:
        set_weights(network, resume["network"])
    elif not recipe.from_scratch:
        recalibrate(
            network,
            train,
            images=recipe.recalibration_images,
            augment=recipe.augment,  # statistics of what the network was trained on
            device=inputs.device,
            seed=policy.seed,
        )
    cost = count_cost(network, inputs.example)
    latency = _latency(network, inputs)

    def measure(epoch: int, state: Callable[[], dict[str, Any]] | None) -> Metrics:
        metrics = _measure(network, inputs.data.val, inputs.device, epoch, cost, latency, clock)
        report(metrics, lambda: _snapshot(network, metrics, state))
        return metrics

    metrics = measure(0, None) if resume is None else Metrics(**resume["metrics"])
    teacher = inputs.network() if recipe.distillation > 0 else None
    training = fine_tune(
        network,
        train,
        recipe,
        teacher=teacher,
        auxiliary=auxiliary,
        device=inputs.device,
        seed=policy.seed,
        resume=None if resume is None else resume["training"],
    )
    for epoch in training:
        metrics = measure(epoch.epoch, epoch.state)
    return Outcome(network, kept, metrics)


def _uncut(policy: Policy, inputs: Inputs) -> tuple[nn.Module, AuxiliaryLosses | None]:
    """Return the baseline, and heads on it: trained ones where the network that they join is trained, too."""
    if policy.auxiliary is None:
        return inputs.network(), None
    if not policy.recipe.from_scratch:
        return with_heads(inputs, policy.auxiliary)
    network = inputs.network()
    return network, AuxiliaryLosses(
        network, policy.auxiliary, inputs.model.num_classes, inputs.example, seed=policy.seed
    )


class _Clock:
    """Seconds since the trial began, across interruptions."""

    def __init__(self, resume: Mapping[str, Any] | None) -> None:
        before = 0.0 if resume is None else float(resume["metrics"]["seconds"])
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _measure(
    network: nn.Module, val: ImageSplit, device: str, epoch: int, cost: Cost, latency: float | None, clock: _Clock
) -> Metrics:
    quality = evaluate(network, val, device=device)
    return Metrics(
        epoch=epoch,
        accuracy=quality.accuracy,
        loss=quality.loss,
        macs=cost.macs,
        params=cost.params,
        latency_ms=latency,
        seconds=clock.seconds(),
    )


def _snapshot(network: nn.Module, metrics: Metrics, state: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """Return what `resume` takes: tensors and plain values only."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return {"network": weights, "metrics": metrics.to_dict(), "training": None if state is None else state()}


def _latency(network: nn.Module, inputs: Inputs) -> float | None:
    """Return the baseline's milliseconds times the ratio of both: a slow moment of the machine meets both alike."""
    spec, baseline = inputs.experiment.latency, inputs.baseline.latency_ms
    if not inputs.experiment.measures_latency:
        return None
    if baseline is None:
        return latency_ms(network, inputs.example, spec.batch, spec.repeats, inputs.device)
    images = torch.zeros((spec.batch, *inputs.example.shape[1:]), device=inputs.device)
    networks = {"uncut": inputs.network().to(inputs.device), "cut": network}
    found = compare_latency(networks, images, repeats=spec.repeats)
    return baseline * found["cut"].median_ms / found["uncut"].median_ms


def latency_ms(network: nn.Module, example: Tensor, batch: int, repeats: int, device: str) -> float:
    """Return the median milliseconds that a batch of `batch` images takes."""
    images = torch.zeros((batch, *example.shape[1:]), device=device)
    return measure_latency(network, images, repeats=repeats).median_ms
