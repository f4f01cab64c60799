"""Remove channels: all groups at once, all or nothing, and prove that removing was the same as masking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from pruning.errors import SurgeryError
from pruning.groups import ChannelGroups, find_groups
from pruning.layers import ChannelPad
from pruning.lineage import skeleton
from pruning.modes import in_mode
from pruning.policy import Policy
from pruning.ranking import Ranking

Kept = dict[str, tuple[int, ...]]
"""For each group that was cut the channels that stayed, ascending."""

Places = dict[tuple[str, int], list[int]]
"""(tensor, or zeros of a padded shortcut, and axis) → positions."""


def prune(
    model: nn.Module,
    policy: Policy | Mapping[str, int],
    ranking: Ranking,
    *,
    groups: ChannelGroups | None = None,
    example_input: Tensor | None = None,
    check: bool = True,
) -> Kept:
    """Cut every group of `model` to the width that the policy says, keeping the channels that the ranking says.

    The model is changed in place; its parameters are new tensors, so optimizers are made after the cut.

    Args:
        model: the network; train or eval mode and `requires_grad` are as found afterwards.
        policy: a policy, or widths by group name; a group that is not named keeps all channels.
        ranking: says which channels stay.
        groups: `find_groups(model, example_input)`, where it is known already.
        example_input: `[images, channels, height, width]`; needed for the check, or to find the groups.
        check: compare the result with the masked network on random input.

    Returns:
        The channels that stayed, for `remove` on another copy of the network.

    Raises:
        PolicyError: widths that do not fit this network.
        SurgeryError: the cut network does not run or is not the masked one. The model is as it was.
    """
    if example_input is None and (check or groups is None):
        raise SurgeryError("prune: expected an `example_input` for the check, got none; or `check=False` and `groups`")
    if groups is None:
        assert example_input is not None
        groups = find_groups(model, example_input)
    if isinstance(policy, Policy):
        policy.check(groups)
        widths: Mapping[str, int] = policy.widths
    else:
        groups.check_widths(policy)
        widths = policy
    kept = {name: ranking.keep(name, keep) for name, keep in widths.items() if keep < groups[name].width}
    remove(model, groups, kept, example_input if check else None)
    return kept


def remove(
    model: nn.Module,
    groups: ChannelGroups,
    kept: Mapping[str, Sequence[int]],
    example_input: Tensor | None = None,
) -> None:
    """Remove from `model`, in place, every channel of the named groups that is not kept.

    Args:
        model: the network that `groups` speaks of, before any cut.
        groups: its channel groups.
        kept: ascending indices that stay, by group name; a group that is not named stays whole.
        example_input: `[images, channels, height, width]`; given, the result is compared with the masked network.

    Raises:
        PolicyError: a group that this network does not have, or no channel kept.
        SurgeryError: indices that do not fit, or a result that is not the masked network. The model is as it was.
    """
    places = _removed(groups, kept)
    _check_sizes(model, groups, kept)
    with torch.random.fork_rng(devices=[]):
        expected = None if example_input is None else _masked_output(model, groups, kept, example_input)
        with _restored_on_error(model, places):
            for (name, axis), positions in places.items():
                _shrink(model, name, axis, positions)
            for layer in {name.rpartition(".")[0] for name, _ in places}:
                _tell_sizes(model.get_submodule(layer))
            if example_input is not None and expected is not None:
                _verify(model, example_input, expected)


def _removed(groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> Places:
    places: dict[tuple[str, int], set[int]] = {}
    groups.check_widths({name: len(set(indices)) for name, indices in kept.items()})
    for name, indices in kept.items():
        group = groups[name]
        if list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < group.width:
            raise SurgeryError(f"kept.{name}: expected ascending indices below {group.width}, got {list(indices)}")
        gone = sorted(set(range(group.width)).difference(indices))
        for part in group.slices:
            positions = places.setdefault((part.tensor, part.axis), set())
            positions.update(position for channel in gone for position in part.positions[channel])
    return {place: sorted(positions) for place, positions in places.items() if positions}


def _check_sizes(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse a network that `groups` does not speak of, such as one that was cut before."""
    for part in (part for name in kept for part in groups[name].slices):
        try:
            whole = getattr(model.get_submodule(part.layer), part.tensor.rpartition(".")[2])
        except AttributeError:
            raise SurgeryError(f"'{part.tensor}': expected a parameter or a buffer, got none") from None
        size = whole if isinstance(whole, int) else whole.shape[part.axis]
        needed = 1 + max(max(positions) for positions in part.positions)
        if size < needed:
            raise SurgeryError(f"'{part.tensor}': expected {needed} channels, got {size}; was the network cut before?")


@contextmanager
def _restored_on_error(model: nn.Module, places: Places) -> Iterator[None]:
    """Undo every change to the touched layers if anything fails, whatever it is."""
    layers = [model.get_submodule(layer) for layer in {name.rpartition(".")[0] for name, _ in places}]
    before = [(layer, dict(layer.__dict__), dict(layer._parameters), dict(layer._buffers)) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, attributes, parameters, buffers in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
            layer._parameters.clear()
            layer._parameters.update(parameters)
            layer._buffers.clear()
            layer._buffers.update(buffers)
        raise


def _shrink(model: nn.Module, name: str, axis: int, positions: list[int]) -> None:
    layer, _, leaf = name.rpartition(".")
    owner = model.get_submodule(layer)
    whole = getattr(owner, leaf)
    if isinstance(owner, ChannelPad):
        owner.remove_zeros(positions)
        return
    if leaf == "num_features":  # all that a norm without weights and statistics knows
        setattr(owner, leaf, whole - len(positions))
        return
    if not isinstance(whole, Tensor) or (leaf not in owner._parameters and leaf not in owner._buffers):
        raise SurgeryError(f"'{name}': expected a parameter or a buffer, got {type(whole).__name__}")
    stay = torch.ones(whole.shape[axis], dtype=torch.bool)
    stay[positions] = False
    small = whole.detach().index_select(axis, stay.nonzero().flatten().to(whole.device))
    setattr(owner, leaf, nn.Parameter(small, whole.requires_grad) if isinstance(whole, nn.Parameter) else small)


def _tell_sizes(module: nn.Module) -> None:
    """Make the integer attributes of a layer agree with its tensors."""
    layer: Any = module
    if isinstance(module, _ConvNd):
        reads, makes = (0, 1) if isinstance(module, _ConvTransposeNd) else (1, 0)
        if module.groups > 1:
            module.groups = (
                module.groups * module.weight.shape[0] // (module.in_channels if reads == 0 else module.out_channels)
            )
        in_share, out_share = (1, module.groups) if reads == 0 else (module.groups, 1)
        module.in_channels = module.weight.shape[reads] * in_share
        module.out_channels = module.weight.shape[makes] * out_share
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, (_BatchNorm, _InstanceNorm)):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = len(module.weight)


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _masked_output(
    model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]], example_input: Tensor
) -> list[Tensor]:
    """Return the outputs of the uncut network in which no layer reads a removed channel.

    Masking at the readers is exact whatever lies between maker and reader. Layer norm over channels is the one other
    reader: it normalises over the kept channels only.
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


def _verify(model: nn.Module, example_input: Tensor, expected: list[Tensor]) -> None:
    """Run the cut network in both modes and compare its eval outputs with the masked ones."""
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
