"""The uncut network with its removed channels masked, and the proof that a cut network equals it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from pruning.errors import SurgeryError
from pruning.groups import ChannelGroups
from pruning.lineage import skeleton
from pruning.modes import in_mode

Places = dict[tuple[str, int], list[int]]
"""(tensor, or zeros of a padded shortcut, and axis) → positions."""


def masked_outputs(
    model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]], example_input: Tensor
) -> list[Tensor]:
    """Return the outputs of the uncut network in which no layer reads a removed channel.

    Masking at the readers is exact whatever lies between maker and reader. Layer norm over channels is the one other
    reader: it normalises over the kept channels only.

    Raises:
        SurgeryError: the network does not run on such an input.
    """
    readers, norms = _read_positions(model, groups, kept)
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    masked: dict[str, Tensor] = {}
    for (name, axis), positions in readers.items():
        weight = masked.get(name, weights[name].detach())
        masked[name] = weight.index_fill(axis, torch.tensor(positions, dtype=torch.long, device=weight.device), 0)
    handles = [_normalise_kept_only(model.get_submodule(layer), positions) for layer, positions in norms.items()]
    try:
        with in_mode(model, training=False), torch.no_grad():
            return _tensors(functional_call(model, masked, (_random_like(example_input, model),)))
    except Exception as error:
        raise SurgeryError(f"{type(model).__name__} does not run on {tuple(example_input.shape)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _read_positions(
    model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]]
) -> tuple[Places, dict[str, list[int]]]:
    readers: Places = {}
    norms: dict[str, list[int]] = {}
    for name, indices in kept.items():
        gone = set(range(groups[name].width)).difference(indices)
        for part in groups[name].readers:
            lost = [position for channel in gone for position in part.positions[channel]]
            readers.setdefault((part.tensor, part.axis), []).extend(lost)
        for part in groups[name].carried:
            if part.tensor.endswith(".weight") and isinstance(model.get_submodule(part.layer), nn.LayerNorm):
                lost = [position for channel in gone for position in part.positions[channel]]
                norms.setdefault(part.layer, []).extend(lost)
    return readers, norms


def _normalise_kept_only(norm: nn.Module, removed: list[int]) -> RemovableHandle:
    assert isinstance(norm, nn.LayerNorm)
    stay = torch.ones(norm.normalized_shape[0], dtype=torch.bool)
    stay[removed] = False
    index = stay.nonzero().flatten().to(norm.weight.device)
    axis = -1 if type(norm) is nn.LayerNorm else 1

    def over_kept(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        part = args[0].movedim(axis, -1).index_select(-1, index)
        bias = None if norm.bias is None else norm.bias[index]
        part = F.layer_norm(part, (len(index),), norm.weight[index], bias, norm.eps)
        whole = torch.zeros_like(output.movedim(axis, -1)).index_copy(-1, index, part)
        return whole.movedim(-1, axis)

    return norm.register_forward_hook(over_kept)


def check_equal(model: nn.Module, example_input: Tensor, expected: list[Tensor]) -> None:
    """Run a cut network in both modes and compare its eval outputs with those of the masked one.

    Raises:
        SurgeryError: it fails, in the layer that is named, or differs.
    """
    image = _random_like(example_input, model)
    with in_mode(model, training=False):
        outputs = _tensors(_run_named(model, image))
    _run_named(skeleton(model).train(), image.to("meta"))  # an auxiliary head that runs in training must fit, too
    for output, masked in zip(outputs, expected, strict=True):
        if output.is_floating_point():
            _compare(output, masked)


def _compare(output: Tensor, expected: Tensor) -> None:
    if output.shape != expected.shape:
        raise SurgeryError(f"cut network: expected output {tuple(expected.shape)}, got {tuple(output.shape)}")
    # Sums over fewer channels round differently; 1,000 units in the last place of the largest output covers deep nets.
    bound = 1000 * torch.finfo(output.dtype).eps * float(expected.abs().max().clamp_min(1e-6))
    difference = float((output - expected).abs().max())
    if not difference <= bound:
        raise SurgeryError(f"cut network differs from the masked one by {difference:.2g}, more than {bound:.2g}")


def _run_named(model: nn.Module, image: Tensor) -> Any:
    """Run a network; an error names the innermost layer that was running."""
    names = {module: name for name, module in model.named_modules()}
    running: list[str] = []
    hooks: list[RemovableHandle] = []
    try:
        for module in names:
            hooks.append(module.register_forward_pre_hook(lambda m, _: running.append(names[m])))
            hooks.append(module.register_forward_hook(lambda *_: void(running.pop())))
        with torch.no_grad():
            return model(image)
    except Exception as error:
        raise SurgeryError(f"cut network fails in layer '{running[-1] if running else ''}': {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def void(_: object) -> None:
    """Drop a value: a forward hook that returns one would replace the output."""


def _random_like(example_input: Tensor, model: nn.Module) -> Tensor:
    """Return two images of fixed noise, so that the check is the same each time and leaves the global RNG alone."""
    parameter = next(model.parameters())
    noise = torch.randn((2, *example_input.shape[1:]), generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output) and not isinstance(output, Mapping):
        output = vars(output)
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, (tuple, list)):
        return []
    return [tensor for part in parts for tensor in _tensors(part)]
