"""Find the channel groups of a network. Where tracing had to guess, every guess is tried before it is believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from pruning.cutting import remove
from pruning.errors import SurgeryError
from pruning.groups import ChannelGroups, Pinned, fold
from pruning.inputs import Example, without_values
from pruning.lineage import EXPORT, follow, skeleton
from pruning.masking import check_runs


def find_groups(model: nn.Module, example_input: Example) -> ChannelGroups:
    """Follow the channels of `model` and fold them into named groups. The model is left as found.

    A graph of torch.export does not tell which numbers of the code follow a cut. Groups from there are cut on a copy,
    and those whose cut is not what masking is are pinned.

    Args:
        model: a network that torch.fx or torch.export can trace; frozen parameters, train or eval mode change nothing.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.

    Raises:
        GraphError: the network cannot be traced.
    """
    groups = fold(follow(model, example_input)[0])
    return _proven(model, groups, example_input) if groups.front_end == EXPORT else groups


def _proven(model: nn.Module, groups: ChannelGroups, example_input: Example) -> ChannelGroups:
    """Pin the groups that cannot be cut as they were found: first those whose cut does not run, which costs little."""
    bare, shapes = skeleton(model), without_values(example_input, images=2)

    def runs(kept: Mapping[str, Sequence[int]]) -> None:
        cut = copy.deepcopy(bare)
        remove(cut, groups, kept)
        check_runs(cut, shapes)

    def agrees(kept: Mapping[str, Sequence[int]]) -> None:
        remove(copy.deepcopy(model), groups, kept, example_input)

    for trial in (runs, agrees):
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
