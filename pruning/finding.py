"""Find the channel groups of a network. Where tracing had to guess, every guess is tried before it is believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.cutting import remove
from pruning.errors import SurgeryError, UnknownNameError
from pruning.groups import ALL_AT_ONCE, ChannelGroups, Pinned, fold
from pruning.inputs import Example, noise_like, run_on, without_values
from pruning.lineage import EXPORT, follow, skeleton
from pruning.masking import check_runs
from pruning.modes import in_mode


def find_groups(model: nn.Module, example_input: Example, *, thinned: Sequence[str] = ()) -> ChannelGroups:
    """Follow the channels of `model` and fold them into named groups. The model is left as found.

    In front of a grouped convolution whole convolution groups are removed, with what they make: each is one channel.
    Or its groups are thinned: each of them loses the channels at the same places, of what it reads and of what it makes
    apart, and all groups stay. So it is where it is asked for, and where whole groups could only go all at once.

    A graph of torch.export does not tell which numbers of the code follow a cut. Groups from there are cut on a copy
    with random weights, and those whose cut is not what masking is are pinned. (Of a network without values, on the
    meta device, only whether the cut runs is tried.)

    Args:
        model: a network that torch.fx or torch.export can trace; frozen parameters, train or eval mode change nothing.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.
        thinned: shell patterns of the convolutions whose groups are thinned. Those with a single channel to read in
            each group cannot be.

    Raises:
        GraphError: the network cannot be traced.
        UnknownNameError: a pattern that fits no such convolution.
    """
    lineage, _ = follow(model, example_input, thinned=thinned)
    for pattern in thinned:
        if not any(fnmatchcase(layer, pattern) for layer in lineage.thinnable):
            raise UnknownNameError("grouped convolution", pattern, lineage.thinnable)
    groups = fold(lineage)
    stuck = _stuck_together(groups).intersection(lineage.thinnable).difference(groups.thinned)
    if stuck:
        again = fold(follow(model, example_input, thinned=[*thinned, *sorted(stuck)])[0])
        groups = again if _pinned_channels(again) < _pinned_channels(groups) else groups
    return _proven(model, groups, example_input) if groups.front_end == EXPORT else groups


def _stuck_together(groups: ChannelGroups) -> set[str]:
    return {part.layer for pin in groups.pinned if pin.reason == ALL_AT_ONCE for part in pin.parts}


def _pinned_channels(groups: ChannelGroups) -> int:
    """Return how many filters are pinned."""
    return sum(len(positions) for pin in groups.pinned for part in pin.parts for positions in part.positions)


def _proven(model: nn.Module, groups: ChannelGroups, example_input: Example) -> ChannelGroups:
    """Pin the groups that cannot be cut as they were found: first those whose cut does not run, which costs little."""
    bare, shapes = skeleton(model), without_values(example_input, images=2)

    def runs(kept: Mapping[str, Sequence[int]]) -> None:
        cut = copy.deepcopy(bare)
        remove(cut, groups, kept)
        check_runs(cut, shapes)

    def agrees(kept: Mapping[str, Sequence[int]]) -> None:
        remove(copy.deepcopy(randomised), groups, kept, example_input)

    trials = [runs]
    if not any(parameter.is_meta for parameter in model.parameters()):
        randomised = _with_random_weights(model, example_input)
        trials.append(agrees)
    for trial in trials:
        failed = _failures(trial, groups, tuple(groups))
        pins = (Pinned(name, groups[name].width, f"a trial cut failed: {why}") for name, why in failed.items())
        left = groups.only(name for name in groups if name not in failed)
        groups = replace(left, pinned=(*groups.pinned, *pins))
    return groups


def _failures(
    trial: Callable[[Mapping[str, Sequence[int]]], None], groups: ChannelGroups, names: Sequence[str]
) -> dict[str, str]:
    """Return group → why of those that cannot be cut; halves are looked into only where the whole fails."""
    try:
        if names:
            trial({name: range(max(groups[name].minimum, groups[name].width // 2)) for name in names})
    except SurgeryError as error:
        if len(names) == 1:
            return {names[0]: str(error)}
        middle = len(names) // 2
        failed = _failures(trial, groups, names[:middle]) | _failures(trial, groups, names[middle:])
        # Where each half alone can be cut, but not both together, the first stays whole.
        return failed or dict.fromkeys(names[:middle], str(error))
    return {}


def _with_random_weights(model: nn.Module, example_input: Example) -> nn.Module:
    """Return a copy in which nothing is zero that hides a difference, as layers that start at zero do."""
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                numbers = torch.rand(tensor.shape, generator=generator)
                scale = (12 / max(1, tensor[0].numel())) ** 0.5 if tensor.dim() > 1 else 1
                tensor.copy_((numbers - 0.5) * scale if tensor.dim() > 1 else numbers + 0.5)
        _take_statistics(network, example_input)
    return network


def _take_statistics(network: nn.Module, example_input: Example) -> None:
    """Give batch norms the statistics of noise, so that what is summed again and again stays of a size."""
    norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        with torch.random.fork_rng(devices=[]), in_mode(network, training=True):
            torch.default_generator.manual_seed(0)
            run_on(network, noise_like(example_input, network))
    except Exception:  # it wants something else when it trains, such as labels: then without
        return
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
