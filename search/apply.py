"""Take a policy home: cut, fine-tune, and open the test images once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from yaml import YAMLError

from pruning import CRITERIA, Memory, Policy, PolicyError, Recipe, compare_latency, evaluate, explain, save_pruned
from search.config import Experiment
from search.describe import memory_of
from search.dialect import read_yaml
from search.errors import SweepError
from search.inputs import Inputs, Say, silent
from search.latencies import threads
from search.layouts import check_model
from search.prepare import prepare
from search.results import Metrics
from search.sections import AllocationSpec, AuxiliarySpace, BudgetSpace, SurrogateSpec, WidthSpace
from search.trial import run_trial
from search.units import percent


@dataclass(frozen=True, slots=True)
class Tested:
    """A network on the test images: top-1 in 0 to 1, cost and memory of one image, median milliseconds of a batch.

    The memory is None where it cannot be told; see `memory_of`.
    """

    accuracy: float
    macs: int
    params: int
    memory: Memory | None
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a policy gave: the baseline, the cut network, and where it lies."""

    baseline: Tested
    pruned: Tested
    folder: Path


def with_recipe(policy: Policy, settings: Sequence[str]) -> Policy:
    """Return a policy whose recipe has other values, given as `epochs=3`.

    Raises:
        PolicyError: no such form, an unknown key, or a value that it cannot take.
    """
    changes = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise PolicyError(f"--recipe: expected name=value, got '{setting}'")
        try:
            changes[key] = read_yaml(text)
        except YAMLError:
            raise PolicyError(f"--recipe {setting}: '{text}' is not YAML") from None
    try:
        recipe = Recipe.model_validate(policy.recipe.model_dump() | changes)
    except ValidationError as error:
        raise PolicyError(f"--recipe {explain(error, 'recipe', Recipe)}") from None
    return policy.model_copy(update={"recipe": recipe})


def refuse_recipe(settings: Sequence[str]) -> None:
    """Refuse settings of an experiment that `apply` would not follow: the policy has a recipe of its own.

    Raises:
        PolicyError: with the option that changes it.
    """
    for setting in settings:
        if setting.startswith(("recipe.", "recipe=")):
            instead = setting.removeprefix("recipe.") if setting.startswith("recipe.") else "epochs=3"
            raise PolicyError(f"--set {setting}: the policy's recipe counts; change it with --recipe {instead}")


def apply_policy(policy: Policy, experiment: Experiment, folder: Path, say: Say = silent) -> Applied:
    """Cut and fine-tune the experiment's baseline by `policy`, test both networks once, and save the cut one.

    Args:
        policy: what to cut and how to recover.
        experiment: names the weights and the images.
        folder: new; gets `policy.json`, `kept.json` and `weights.safetensors`, at the end and all at once.
        say: told of every step.

    Raises:
        SweepError: the folder exists, or cannot be made.
        PolicyError: a policy for another network.
        PruningError: see `prepare` and `run_trial`.
    """
    _check_place(folder)
    if not policy.widths:
        raise PolicyError("policy.widths: expected at least one channel group, got none")
    check_model(policy, experiment)
    for criterion in policy.every_criterion:
        CRITERIA.build(criterion.name, **criterion.options)  # refuses what it does not know
    search = experiment.search.model_copy(
        update={
            "criterion": policy.every_criterion,
            "groups": tuple(policy.widths),
            "thinned": policy.thinned,
            "allocation": (AllocationSpec(name="searched"),),  # the widths are known: no rule needs a ranking
            "auxiliary": AuxiliarySpace.fixed(policy.auxiliary),
            "widths": WidthSpace(),
            "budget": BudgetSpace(),  # nor does anybody ask what other widths would take
            "start": (),
            "surrogate": SurrogateSpec(kind="none"),
        }
    )
    inputs = prepare(experiment.model_copy(update={"search": search}), say, policy.check)
    with threads(experiment.resources.threads):  # as many as the sweep's trials had: equal sums, an equal network
        outcome = run_trial(policy, inputs, _announce(policy, say))
        outcome.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as the baseline is
        networks = {"baseline": inputs.network().to(inputs.device), "pruned": outcome.network}
        images = torch.zeros((experiment.latency.batch, *inputs.data.image_shape), device=inputs.device)
        latency = compare_latency(networks, images, repeats=experiment.latency.repeats)
    save_pruned(folder, outcome.network, policy, outcome.kept, image_shape=inputs.data.image_shape)
    accuracy = {name: _tested(network, inputs) for name, network in networks.items()}
    full, metrics = inputs.cost.full, outcome.metrics
    before, after = (memory_of(inputs.cost, widths) for widths in ({}, policy.widths))
    return Applied(
        baseline=Tested(accuracy["baseline"], full.macs, full.params, before, latency["baseline"].median_ms),
        pruned=Tested(accuracy["pruned"], metrics.macs, metrics.params, after, latency["pruned"].median_ms),
        folder=folder,
    )


def _check_place(folder: Path) -> None:
    """Refuse a place where no folder can be made, before hours of work."""
    if folder.exists():
        raise SweepError(f"{folder}: exists; name another folder with --output")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise SweepError(f"{folder}: expected a place for a new folder, but {above} cannot hold one")


def _tested(network: torch.nn.Module, inputs: Inputs) -> float:
    return evaluate(network, inputs.data.test, device=inputs.device).accuracy


def _announce(policy: Policy, say: Say) -> Callable[[Metrics, Callable[[], dict[str, Any]]], None]:
    def announce(metrics: Metrics, _: Callable[[], dict[str, Any]]) -> None:
        step = f"epoch {metrics.epoch}/{policy.recipe.epochs}" if metrics.epoch else "cut and recalibrated"
        say(f"  {step}: validation {percent(metrics.accuracy, 2)}, loss {metrics.loss:.3f}")

    return announce
