"""The uncut network with its removed channels masked, and the proof that a cut network equals it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from pruning.errors import SurgeryError
from pruning.groups import ChannelGroups
from pruning.inputs import Example, as_arguments, noise_like, run_on, shapes, without_values
from pruning.lineage import skeleton
from pruning.lineage.computed import is_computed, layer_of
from pruning.lineage.mixing import over_kept
from pruning.lineage.trial import Reading, normalised_axis, reading
from pruning.modes import in_mode

Places = dict[tuple[str, int], list[int]]
"""(tensor, or zeros of a padded shortcut, and axis) → positions."""


def masked_outputs(
    model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]], example_input: Example
) -> list[Tensor]:
    """Return the outputs of the uncut network in which no layer reads a removed channel.

    Masking at the readers is exact whatever lies between maker and reader. What sees channels otherwise sees the kept
    ones alone: layers that normalise over channels, convolutions that standardise their filters, and operations over
    all channels, such as a mean.

    Raises:
        SurgeryError: the network does not run on such an input.
    """
    readers, norms = _read_positions(model, groups, kept)
    anew = {name.rpartition(".")[0]: place for place in list(readers) if _reads_anew(model, name := place[0])}
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    masked: dict[str, Tensor] = {}
    handles = []
    for (name, axis), positions in readers.items():
        if (name, axis) in anew.values():
            continue
        layer = model.get_submodule(layer_of(name))
        if is_computed(name, layer):
            handles.append(_with_zeros_in(layer, positions))
            continue
        weight = masked.get(name, weights[name].detach())
        masked[name] = weight.index_fill(axis, torch.tensor(positions, dtype=torch.long, device=weight.device), 0)
    places = norms | {place: readers[place] for place in anew.values()}
    handles += [
        _with_kept_only(model.get_submodule(name.rpartition(".")[0]), axis, positions)
        for (name, axis), positions in places.items()
    ]
    try:
        network = over_kept(model, _mixed_positions(groups, kept), example_input)
        own = dict(network.named_parameters()) | dict(network.named_buffers())
        masked = {name: tensor for name, tensor in masked.items() if name in own}  # some layers run in training only
        arguments = as_arguments(noise_like(example_input, model))
        with in_mode(model, training=False), torch.no_grad():
            return _tensors(functional_call(network, masked, *arguments, tie_weights=False))
    except Exception as error:
        raise SurgeryError(f"{type(model).__name__} does not run on {shapes(example_input)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _read_positions(
    model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]]
) -> tuple[Places, Places]:
    """Return where removed channels are read, and where they are normalised together with others."""
    readers: Places = {}
    norms: Places = {}
    for name, indices in kept.items():
        gone = set(range(groups[name].width)).difference(indices)
        carried = (part for part in groups[name].carried if part.tensor.endswith(".weight"))
        mixed = [part for part in carried if _mixes(model.get_submodule(part.layer))]
        for places, parts in ((readers, groups[name].readers), (norms, mixed)):
            for part in parts:
                lost = [position for channel in gone for position in part.positions[channel]]
                places.setdefault((part.tensor, part.axis), []).extend(lost)
    return readers, norms


def _mixed_positions(groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, list[int]]]:
    """Return where operations over all channels see removed ones."""
    removed: dict[str, dict[int, list[int]]] = {}
    for name, indices in kept.items():
        gone = set(range(groups[name].width)).difference(indices)
        for part in groups[name].mixed:
            positions = removed.setdefault(part.tensor.removeprefix("%"), {}).setdefault(part.axis, [])
            positions += [position for channel in gone for position in part.positions[channel]]
    return removed


def _mixes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) or (isinstance(layer, nn.GroupNorm) and layer.num_groups == 1)


def _reads_anew(model: nn.Module, weight: str) -> bool:
    layer = model.get_submodule(weight.rpartition(".")[0])
    return isinstance(layer, (_ConvNd, nn.Linear)) and reading(layer) is Reading.ANEW


def _with_kept_only(layer: nn.Module, axis: int, removed: list[int]) -> RemovableHandle:
    """Have a layer see the kept channels alone; of a norm the others come out as zeros.

    Args:
        layer: a norm, or a convolution that standardises its filters.
        axis: of its parameters.
        removed: positions on it.
    """
    weight: Any = layer.weight
    stay = torch.ones(weight.shape[axis], dtype=torch.bool)
    stay[removed] = False
    index = stay.nonzero().flatten().to(weight.device)
    alone: Any = copy.copy(layer)
    alone._forward_hooks = OrderedDict()
    alone._parameters = dict(layer._parameters)
    for name in ("weight", "bias") if _mixes(layer) else ("weight",):
        if alone._parameters[name] is not None:
            alone._parameters[name] = nn.Parameter(alone._parameters[name].detach().index_select(axis, index))
    where = 1
    if isinstance(layer, nn.LayerNorm):
        alone.normalized_shape = tuple(alone.weight.shape)
        if weight.dim() > 1 or normalised_axis(layer) == -1:
            where = axis - weight.dim()
    elif isinstance(layer, nn.GroupNorm):
        alone.num_channels = len(index)

    def of_kept(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Any:
        kept = alone(args[0].index_select(where, index))
        return torch.zeros_like(output).index_copy(where, index, kept) if _mixes(layer) else kept

    return layer.register_forward_hook(of_kept)


def _with_zeros_in(layer: nn.Module, positions: Sequence[int]) -> RemovableHandle:
    """Have a layer whose weight is computed read zeros instead of removed channels."""
    axis = 1 if isinstance(layer, _ConvNd) else -1

    def zeroed(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        index = torch.tensor(positions, dtype=torch.long, device=args[0].device)
        return args[0].index_fill(axis, index, 0), *args[1:]

    return layer.register_forward_pre_hook(zeroed)


def check_equal(model: nn.Module, example_input: Example, expected: list[Tensor]) -> None:
    """Run a cut network in both modes and compare its eval outputs with those of the masked one.

    Raises:
        SurgeryError: it fails, in the layer that is named, or differs.
    """
    with in_mode(model, training=False):
        outputs = _tensors(_run_named(model, noise_like(example_input, model)))
    check_runs(skeleton(model), without_values(example_input, images=2))
    for output, masked in zip(outputs, expected, strict=True):
        if output.is_floating_point():
            _compare(output, masked)


def check_runs(bare: nn.Module, shapes: Example) -> None:
    """Run a cut skeleton in train mode, where auxiliary heads run, too, on inputs without values.

    Raises:
        SurgeryError: it fails, in the layer that is named.
    """
    with torch.device("meta"):  # tensors that the code makes have no values either
        _run_named(bare.train(), shapes)


def _compare(output: Tensor, expected: Tensor) -> None:
    if output.shape != expected.shape:
        raise SurgeryError(f"cut network: expected output {tuple(expected.shape)}, got {tuple(output.shape)}")
    # Sums over fewer channels round differently; 1,000 units in the last place of the largest output covers deep nets.
    # What is zero but for rounding, such as the mean of normalised channels, has the rounding of larger numbers.
    bound = 1000 * torch.finfo(output.dtype).eps * float(expected.abs().max().clamp_min(1e-3))
    difference = float((output - expected).abs().max())
    if not difference <= bound:
        raise SurgeryError(f"cut network differs from the masked one by {difference:.2g}, more than {bound:.2g}")


def _run_named(model: nn.Module, example: Example) -> Any:
    """Run a network; an error names the innermost layer that was running."""
    # A scripted module takes no hooks; an error in it names the module around it.
    names = {m: name for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
    running: list[str] = []
    hooks: list[RemovableHandle] = []
    try:
        for module in names:
            hooks.append(module.register_forward_pre_hook(lambda m, _: running.append(names[m])))
            hooks.append(module.register_forward_hook(lambda *_: void(running.pop())))
        with torch.no_grad():
            return run_on(model, example)
    except Exception as error:
        raise SurgeryError(f"cut network fails in layer '{running[-1] if running else ''}': {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def void(_: object) -> None:
    """Drop a value: a forward hook that returns one would replace the output."""


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output) and not isinstance(output, Mapping):
        output = vars(output)
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, (tuple, list)):
        return []
    return [tensor for part in parts for tensor in _tensors(part)]
