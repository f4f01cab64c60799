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
from pruning.groups import ChannelGroups, Slice
from pruning.inputs import Example, as_arguments, noise_like, nudged, run_on, shapes, without_values
from pruning.lineage import skeleton
from pruning.lineage.attributes import entry_of
from pruning.lineage.computed import is_computed, layer_of
from pruning.lineage.mixing import over_kept
from pruning.lineage.trial import Reading, normalised_axis, reading
from pruning.modes import in_mode

_ZERO = 1e-3
"""An output below this may be zero but for rounding; a difference is held against this instead."""

_HIDDEN = 1e-4
"""Rounding may change an output that is not zero by no more than this part of it: what it may in single anyway."""

_LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)

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
    model = in_single(model)
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
        normed = [
            (norms, place, part)
            for part in groups[name].carried
            if (place := _normed(model.get_submodule(part.layer), part)) is not None
        ]
        read = [(readers, (part.tensor, part.axis), part) for part in groups[name].readers]
        for places, place, part in (*read, *normed):
            lost = [position for channel in gone for position in part.positions[channel]]
            places.setdefault(place, []).extend(lost)
    return readers, norms


def _normed(layer: nn.Module, part: Slice) -> tuple[str, int] | None:
    """Return the weight, there or not, and axis of a norm that normalises over channels; None of all that is none."""
    sized, entry = entry_of(part.tensor.rpartition(".")[2])
    by_number = getattr(layer, "weight", None) is None and sized in ("normalized_shape", "num_channels")
    if not _mixes(layer) or not (sized == "weight" or by_number):
        return None
    return f"{part.layer}.weight", part.axis if entry is None else entry


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
    return isinstance(layer, _LAYER_NORMS) or (isinstance(layer, nn.GroupNorm) and layer.num_groups == 1)


def _reads_anew(model: nn.Module, weight: str) -> bool:
    layer = model.get_submodule(weight.rpartition(".")[0])
    return isinstance(layer, (_ConvNd, nn.Linear)) and reading(layer) is Reading.ANEW


def _with_kept_only(layer: nn.Module, axis: int, removed: list[int]) -> RemovableHandle:
    """Have a layer see the kept channels alone; of a norm the others come out as zeros.

    Args:
        layer: a norm, or a convolution that standardises its filters.
        axis: of its weight.
        removed: positions on it.
    """
    sizes = _sizes(layer)
    stay = torch.ones(sizes[axis], dtype=torch.bool)
    stay[removed] = False
    index = stay.nonzero().flatten()
    alone: Any = copy.copy(layer)
    alone._forward_hooks = OrderedDict()
    alone._parameters = dict(layer._parameters)
    for name in ("weight", "bias") if _mixes(layer) else ("weight",):
        whole = alone._parameters.get(name)
        if whole is not None:
            alone._parameters[name] = nn.Parameter(whole.detach().index_select(axis, index.to(whole.device)))
    where = 1
    if isinstance(layer, _LAYER_NORMS):
        alone.normalized_shape = (*sizes[:axis], len(index), *sizes[axis + 1 :])
        if len(sizes) > 1 or normalised_axis(layer) == -1:
            where = axis - len(sizes)
    elif isinstance(layer, nn.GroupNorm):
        alone.num_channels = len(index)

    def of_kept(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Any:
        stays = index.to(args[0].device)
        kept = alone(args[0].index_select(where, stays))
        return torch.zeros_like(output).index_copy(where, stays, kept) if _mixes(layer) else kept

    return layer.register_forward_hook(of_kept)


def _sizes(layer: Any) -> tuple[int, ...]:
    """Return the shape of the weight of a convolution, or of a norm, which may lack it."""
    if isinstance(layer, _LAYER_NORMS):
        return tuple(layer.normalized_shape)
    return (layer.num_channels,) if isinstance(layer, nn.GroupNorm) else tuple(layer.weight.shape)


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
    model = in_single(model)
    noise = noise_like(example_input, model)
    with in_mode(model, training=False):
        outputs = _tensors(_run_named(model, noise))
        check_runs(skeleton(model), without_values(noise, images=2))
        differences = [_difference(output, masked) for output, masked in zip(outputs, expected, strict=True)]
        if any(difference > bound for difference, bound in differences):
            moved = [_difference(*pair)[0] for pair in zip(_tensors(run_nudged(model, noise)), outputs, strict=True)]
            differences = [
                (difference, bound if difference <= bound else max(bound, _rounding(masked, by)))
                for (difference, bound), by, masked in zip(differences, moved, expected, strict=True)
            ]
    for difference, bound in differences:
        if not difference <= bound:
            raise SurgeryError(f"cut network differs from the masked one by {difference:.2g}, more than {bound:.2g}")


def in_single(model: nn.Module) -> nn.Module:
    """Return a network, or a copy in single precision of one of half: in which outputs can hardly be told apart."""
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return copy.deepcopy(model).float() if half else model


def check_runs(bare: nn.Module, shapes: Example) -> None:
    """Run a cut skeleton in train mode, where auxiliary heads run, too, on inputs without values.

    Raises:
        SurgeryError: it fails, in the layer that is named.
    """
    with torch.device("meta"):  # tensors that the code makes have no values either
        _run_named(bare.train(), shapes)


def run_nudged(model: nn.Module, example: Example) -> Any:
    """Run a network in which the inputs and what each layer gives differ in the last places, as if rounded otherwise.

    Of each layer, too: behind activations that are all zero nothing depends on the input.
    """

    def moved(_: nn.Module, args: object, output: Any) -> Any:
        del args
        return nudged(output) if isinstance(output, Tensor) else None

    layers = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    hooks = [layer.register_forward_hook(moved) for layer in layers]
    try:
        with torch.no_grad():
            return run_on(model, nudged(example))
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(output: Tensor, moved: float) -> float:
    """Return what rounding may make of an output, if changes in the last places of all layers move it so far.

    A network of a large gain could hide a wrong cut: of an output that is not zero, rounding may make a part alone.
    """
    largest = float(output.abs().max())
    return 100 * moved if largest < _ZERO else min(100 * moved, _HIDDEN * largest)


def _difference(output: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference of two outputs, and what rounding may make of it.

    Sums over fewer channels round differently; 1,000 units in the last place of the largest output covers deep nets.
    Where it does not, it is asked how far the output moves when what each layer gives changes in the last places: what
    is zero but for rounding, such as the mean of normalised channels, has the rounding of larger numbers, and a norm
    over places that are hardly apart magnifies it.
    """
    if output.shape != expected.shape:
        raise SurgeryError(f"cut network: expected output {tuple(expected.shape)}, got {tuple(output.shape)}")
    if not output.is_floating_point():
        return 0.0, 0.0
    bound = 1000 * torch.finfo(output.dtype).eps * float(expected.abs().max().clamp_min(_ZERO))
    return float((output - expected).abs().max()), bound


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
