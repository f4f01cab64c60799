"""The blocks of a network: the places between which no channel is inner, and what its modules put out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.errors import PruningError, UnknownNameError
from pruning.modes import in_mode

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)


def block_names(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Return the modules between which no channel is inside a block, in the order in which they run.

    A block is an outermost module, other than a plain sequence or list, with a convolution and at least one more
    convolution or linear layer: ResNet's residual blocks, MobileNet's, DenseNet's, inceptions. A network without any,
    such as VGG, has the activation behind each convolution instead. Only what puts out one feature map
    `[images, channels, height, width]` once in a forward pass counts.

    Args:
        model: runs once in eval mode; its state is as found afterwards.
        example_input: `[images, channels, height, width]`.

    Raises:
        PruningError: the network has no such modules.
    """
    names = block_modules(model, example_input) or _activations(model, example_input)
    if not names:
        raise PruningError(
            f"auxiliary positions: expected a network of blocks, or of convolutions with activation modules, "
            f"got {type(model).__name__}; name modules as positions instead"
        )
    return names


def block_modules(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Return the blocks among `block_names`: none for a network such as VGG."""
    return _maps_once(record(model, _blocks(model), example_input))


def _blocks(model: nn.Module) -> list[str]:
    found = _outermost_blocks(model)
    if len(found) == 1:  # perhaps the network itself in a wrapper
        inside = [f"{found[0]}.{name}" for name in _outermost_blocks(model.get_submodule(found[0]))]
        return inside if len(inside) > 1 else found
    return found


def _outermost_blocks(model: nn.Module) -> list[str]:
    found: list[str] = []
    for name, child in model.named_children():
        found += [name] if _is_block(child) else [f"{name}.{inner}" for inner in _outermost_blocks(child)]
    return found


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, (nn.Sequential, nn.ModuleList)) or type(module) is nn.ModuleDict:
        return False
    layers = [layer for layer in module.modules() if isinstance(layer, (_ConvNd, nn.Linear))]
    return len(layers) > 1 and any(isinstance(layer, _ConvNd) for layer in layers)


def _activations(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Return the first activation behind each convolution."""
    kinds = (_ConvNd, nn.Linear, *_ACTIVATIONS)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    calls = record(model, layers, example_input)
    once = _maps_once(calls)
    return tuple(
        call.name
        for before, call in pairwise(calls)
        if isinstance(layers[before.name], _ConvNd)
        and isinstance(layers[call.name], _ACTIVATIONS)
        and call.name in once
    )


class Call(NamedTuple):
    """One run of a module, and its output's count of changes in place at that time."""

    name: str
    output: Any
    version: int

    @property
    def is_feature_map(self) -> bool:
        """Whether the output is `[images, channels, height, width]`."""
        return isinstance(self.output, Tensor) and self.output.dim() == 4


def _maps_once(calls: Sequence[Call]) -> tuple[str, ...]:
    times = Counter(call.name for call in calls)
    return tuple(call.name for call in calls if times[call.name] == 1 and call.is_feature_map)


def record(model: nn.Module, names: Iterable[str], example_input: Tensor) -> list[Call]:
    """Return what the named modules put out in eval mode, in order."""
    calls: list[Call] = []
    device = next((parameter.device for parameter in model.parameters()), example_input.device)

    def take(name: str, output: Any) -> None:
        calls.append(Call(name, output, output._version if isinstance(output, Tensor) else 0))

    with torch.no_grad(), torch.random.fork_rng([]), in_mode(model, training=False), watched(model, names, take):
        model(example_input.to(device))
    return calls


@contextmanager
def watched(model: nn.Module, names: Iterable[str], take: Callable[[str, Any], None]) -> Iterator[None]:
    """Give `take` every output of the named modules."""
    modules, hooks = dict(model.named_modules()), []
    try:
        for name in names:
            if name not in modules:
                raise UnknownNameError("module", name, filter(None, modules))
            hooks.append(modules[name].register_forward_hook(partial(_pass_on, take, name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pass_on(take: Callable[[str, Any], None], name: str, _: nn.Module, __: object, output: Any) -> None:
    take(name, output)
