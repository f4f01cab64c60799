"""Take a policy home: cut, fine-tune, and open the test images once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruning import CRITERIA, Policy, PolicyError, compare_latency, evaluate, save_pruned
from search.config import Experiment
from search.errors import SweepError
from search.inputs import Inputs, Say, silent
from search.prepare import prepare
from search.results import Metrics
from search.sections import AllocationSpec, AuxiliarySpace, SurrogateSpec, WidthSpace
from search.trial import run_trial


@dataclass(frozen=True, slots=True)
class Tested:
    """A network on the test images: top-1 in 0 to 1, cost of one image, median milliseconds of a batch."""

    accuracy: float
    macs: int
    params: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a policy gave: the baseline, the cut network, and where it lies."""

    baseline: Tested
    pruned: Tested
    folder: Path


def apply_policy(policy: Policy, experiment: Experiment, folder: Path, say: Say = silent) -> Applied:
    """Cut and fine-tune the experiment's baseline by `policy`, test both networks once, and save the cut one.

    Args:
        policy: what to cut and how to recover.
        experiment: names the weights and the images.
        folder: new; gets `policy.json`, `kept.json` and `weights.safetensors`.
        say: told of every step.

    Raises:
        SweepError: the folder exists.
        PolicyError: a policy for another network.
        PruningError: see `prepare` and `run_trial`.
    """
    if folder.exists():
        raise SweepError(f"{folder}: exists; name another folder with --output")
    if not policy.widths:
        raise PolicyError("policy.widths: expected at least one channel group, got none")
    if policy.model != experiment.model:
        raise PolicyError(f"policy.model: expected {experiment.model} as in the experiment, got {policy.model}")
    for criterion in policy.every_criterion:
        CRITERIA.build(criterion.name, **criterion.options)  # refuses what it does not know
    search = experiment.search.model_copy(
        update={
            "criterion": policy.every_criterion,
            "groups": tuple(policy.widths),
            "allocation": (AllocationSpec(name="searched"),),  # the widths are known: no rule needs a ranking
            "auxiliary": AuxiliarySpace.fixed(policy.auxiliary),
            "widths": WidthSpace(),
            "start": (),
            "surrogate": SurrogateSpec(kind="none"),
        }
    )
    inputs = prepare(experiment.model_copy(update={"search": search}), say, policy.check)
    with _threads(experiment.resources.threads):  # as many as the sweep's trials had: equal sums, an equal network
        outcome = run_trial(policy, inputs, _announce(policy, say))
        outcome.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as the baseline is
        networks = {"baseline": inputs.network().to(inputs.device), "pruned": outcome.network}
        images = torch.zeros((experiment.latency.batch, *inputs.data.image_shape), device=inputs.device)
        latency = compare_latency(networks, images, repeats=experiment.latency.repeats)
    save_pruned(folder, outcome.network, policy, outcome.kept, image_shape=inputs.data.image_shape)
    accuracy = {name: _tested(network, inputs) for name, network in networks.items()}
    full, metrics = inputs.cost.full, outcome.metrics
    return Applied(
        baseline=Tested(accuracy["baseline"], full.macs, full.params, latency["baseline"].median_ms),
        pruned=Tested(accuracy["pruned"], metrics.macs, metrics.params, latency["pruned"].median_ms),
        folder=folder,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tested(network: torch.nn.Module, inputs: Inputs) -> float:
    return evaluate(network, inputs.data.test, device=inputs.device).accuracy


def _announce(policy: Policy, say: Say) -> Callable[[Metrics, Callable[[], dict[str, Any]]], None]:
    def announce(metrics: Metrics, _: Callable[[], dict[str, Any]]) -> None:
        step = f"epoch {metrics.epoch}/{policy.recipe.epochs}" if metrics.epoch else "cut and recalibrated"
        say(f"  {step}: validation {metrics.accuracy:.2%}, loss {metrics.loss:.3f}")

    return announce
