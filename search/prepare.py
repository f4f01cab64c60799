"""Make what all trials share, each piece once: data, baseline, groups, cost model, rankings."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import (
    ALLOCATIONS,
    AuxiliaryLosses,
    AuxiliaryPlacement,
    ChannelGroups,
    CostModel,
    DataError,
    Epoch,
    ImageData,
    block_names,
    build_model,
    count_cost,
    evaluate,
    even_positions,
    find_groups,
    fine_tune,
    load_data,
    load_weights,
    save_weights,
)
from search.config import Experiment
from search.errors import ExperimentError
from search.inputs import Baseline, Inputs, Say, searched_groups, silent
from search.latencies import with_latency_model
from search.mirror import pulled
from search.places import address_of, fetch, store
from search.rankings import rank_all, rank_by_weights
from search.sections import AllocationSpec
from search.space import Space
from search.trial import latency_ms
from search.units import percent, short_count


@dataclass(frozen=True)
class Subject:
    """The network that is to be cut, with its images."""

    network: nn.Module
    data: ImageData
    example: Tensor


def anything(_: ChannelGroups) -> None:
    """Accept every network."""


def device_for(experiment: Experiment) -> str:
    """Return the device on which trials run: a GPU if they ask for one.

    Raises:
        ExperimentError: a GPU is asked for and there is none.
    """
    if experiment.resources.gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ExperimentError(f"resources.gpus: expected a CUDA device for {experiment.resources.gpus}, got none")
    return "cuda"


def prepare(experiment: Experiment, say: Say = silent, check: Callable[[ChannelGroups], None] = anything) -> Inputs:
    """Load or train the baseline, measure it, find its groups and rank their channels; see `prepare_unranked`."""
    inputs = with_latency_model(prepare_unranked(experiment, say, check), say)
    return replace(inputs, rankings=rank_all(inputs, say))


def prepare_ahead(experiment: Experiment, say: Say = silent) -> Inputs:
    """Prepare what takes no images to rank, and refuse what shows without the rest: limits that no trial can meet.

    Raises:
        SearchError, PruningError: as for `prepare_unranked`.
    """
    inputs = with_latency_model(prepare_unranked(experiment, say), say)
    inputs = replace(inputs, rankings=rank_by_weights(inputs, say))
    rules = experiment.search.allocation
    blind = tuple(rule for rule in rules if rule.name == "searched" or not _looks_at_ranking(rule))
    if blind:
        widths = experiment.search.widths
        if widths.around is not None and _looks_at_ranking(widths.around):
            widths = widths.model_copy(update={"around": None})
        search = experiment.search.model_copy(update={"allocation": blind, "widths": widths})
        space_of(replace(inputs, experiment=experiment.model_copy(update={"search": search})))
    return inputs


def _looks_at_ranking(rule: AllocationSpec) -> bool:
    return ALLOCATIONS.build(rule.name, **rule.options).looks_at_ranking


def prepare_unranked(
    experiment: Experiment, say: Say = silent, check: Callable[[ChannelGroups], None] = anything
) -> Inputs:
    """Load or train the baseline, measure it and find its groups; rankings are made when they are asked for.

    Args:
        experiment: what is asked.
        say: told of every step.
        check: called with the network's groups before anything is trained or written; raises if they do not do.

    Raises:
        SearchError, PruningError: something in the experiment does not exist or does not fit.
    """
    untrained = build_subject(experiment, say)
    groups = find_groups(untrained.network, untrained.example, thinned=experiment.search.thinned)
    check(groups)
    searched = searched_groups(experiment, groups)
    blocks_for(experiment, untrained.network, untrained.example)
    say(f"{len(searched)} of {len(groups)} channel groups are searched")
    trained = with_baseline(untrained, experiment, say)
    cost = CostModel(trained.network, groups, trained.example)
    baseline = measure_baseline(experiment, trained, cost)
    say(f"baseline: {describe_baseline(baseline)} on the validation images")
    return Inputs(
        experiment=experiment,
        model=experiment.model,
        weights={name: tensor.cpu() for name, tensor in trained.network.state_dict().items()},
        data=trained.data,
        groups=groups,
        cost=cost,
        example=trained.example,
        baseline=baseline,
        blocks=blocks_for(experiment, trained.network, trained.example),
        device=device_for(experiment),
    )


def space_of(inputs: Inputs) -> Space:
    """Return the searched space of an experiment."""
    searched = searched_groups(inputs.experiment, inputs.groups)
    return Space(
        inputs.experiment, inputs.groups, inputs.cost, searched, inputs.rankings, inputs.blocks, inputs.latency
    )


def blocks_for(experiment: Experiment, network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the modules behind which auxiliary losses can sit, where the experiment asks for any.

    Raises:
        PruningError: a network without blocks, a count or places that it does not have.
    """
    asked = experiment.search.auxiliary
    if asked.positions:
        placement = AuxiliaryPlacement(kind="explicit", positions=asked.positions, head=asked.head[0])
        AuxiliaryLosses(network, placement, experiment.model.num_classes, example)  # refuses what is not there
    if asked.count == (0,):
        return ()
    blocks = block_names(network, example)
    for count in filter(None, asked.count):
        if "even" in asked.placement:
            even_positions(len(blocks), count)
        if count >= len(blocks):
            most = f"at most {len(blocks) - 1} losses for {len(blocks)} blocks"
            raise ExperimentError(f"search.auxiliary.count: expected {most}, got {count}")
    return blocks


def load_baseline(experiment: Experiment, say: Say = silent) -> Subject:
    """Load the images and the baseline's weights; train it where the experiment names no weights.

    Raises:
        PruningError: images, network or weights that are not there or do not fit each other.
    """
    return with_baseline(build_subject(experiment, say), experiment, say)


def build_subject(experiment: Experiment, say: Say = silent) -> Subject:
    """Load the images and build the network, with random weights by the experiment's seed."""
    data = load_data(experiment.data.name, **_fetched(experiment.data.options, say))
    if len(data.classes) != experiment.model.num_classes:
        raise DataError(
            f"model.num_classes: expected {len(data.classes)}, the classes of '{experiment.data.name}', "
            f"got {experiment.model.num_classes}"
        )
    say(f"{data.name}: {len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.search.seed)
        network = build_model(experiment.model)
    example = torch.zeros((1, *data.image_shape))
    count_cost(network, example)  # refuses images that the network does not take
    return Subject(network, data, example)


def _fetched(options: Mapping[str, Any], say: Say) -> Mapping[str, Any]:
    """Have the images here that lie at an address."""
    if isinstance(root := options.get("root"), str) and (address := address_of(Path(root))):
        say(f"fetching what is new at {address}")
        pulled(Path(root))
    return options


def with_baseline(untrained: Subject, experiment: Experiment, say: Say = silent) -> Subject:
    """Give a network the baseline's weights, in eval mode: those that the experiment names, or trained ones."""
    path = fetch(experiment.weights or trained_path(experiment, untrained.data))
    if experiment.weights is None and not path.exists():
        trained = copy.deepcopy(untrained.network)  # training changes the memory layout, and with it the last digits
        train_baseline(experiment, trained, untrained.data, say)
        save_weights(trained, path)
        store(path)
    load_weights(untrained.network, path)
    untrained.network.eval()
    return untrained


def trained_path(experiment: Experiment, data: ImageData) -> Path:
    """Return where a trained baseline is kept: one file for each network, data, recipe and seed."""
    parts = [experiment.model.model_dump(), experiment.baseline.model_dump(), data.fingerprint, experiment.search.seed]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = experiment.model.name.replace(":", ".").replace("/", ".")
    return experiment.storage / "baselines" / f"{name}-{key}.safetensors"


def train_baseline(experiment: Experiment, network: nn.Module, data: ImageData, say: Say) -> None:
    """Train a network from its random weights by the experiment's `baseline` recipe."""
    recipe, device = experiment.baseline, device_for(experiment)
    say(f"training the baseline for {recipe.epochs} epochs")
    for epoch in fine_tune(network, data.train, recipe, device=device, seed=experiment.search.seed):
        if _worth_saying(epoch, recipe.epochs):
            accuracy = evaluate(network, data.val, device=device).accuracy
            say(f"  epoch {epoch.epoch}/{recipe.epochs}: loss {epoch.loss:.3f}, validation {percent(accuracy, 2)}")


def _worth_saying(epoch: Epoch, epochs: int) -> bool:
    return epoch.epoch == epochs or epoch.epoch % max(1, epochs // 10) == 0


def measure_baseline(experiment: Experiment, trained: Subject, cost: CostModel) -> Baseline:
    """Evaluate the baseline on the validation images, and time it where latency is asked for."""
    device, spec = device_for(experiment), experiment.latency
    network = trained.network.to(device)
    quality = evaluate(network, trained.data.val, device=device)
    latency = None
    if experiment.measures_latency:
        latency = latency_ms(network, trained.example, spec.batch, spec.repeats, device)
    network.to("cpu")
    return Baseline(quality.accuracy, quality.loss, cost.full.macs, cost.full.params, latency)


def describe_baseline(baseline: Baseline) -> str:
    """Return accuracy and cost in words."""
    latency = "" if baseline.latency_ms is None else f", {baseline.latency_ms:.2f} ms"
    macs, params = short_count(baseline.macs), short_count(baseline.params)
    return f"{percent(baseline.accuracy, 2)}, {macs} MACs, {params} parameters{latency}"
