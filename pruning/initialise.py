"""New initial weights for a network that is there: the narrow network trained from nothing (width multiplier)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pruning.errors import ModelError


def draw_weights(model: nn.Module, seed: int = 0) -> None:
    """Draw all weights of `model` anew, in place, as its layers draw their own; running statistics start again.

    Equal seeds give equal weights, on every device: they are drawn on the CPU. Torch's global random state, modes,
    `requires_grad` and hooks are as found, and so are the weights after an error. The parameters stay the same objects.

    The baseline WM of: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018,
    which takes it from Howard et al., MobileNets, 2017, §3.3.
    Differs: every layer draws as its own class does (`reset_parameters`). So do the constructors of the networks for
    small images that this package brings; torchvision's ResNets, for one, draw convolutions by He's rule instead.

    Raises:
        ModelError: a module with parameters of its own that has no `reset_parameters`.
    """
    fresh = copy.deepcopy(model).cpu()
    layers = list(_layers(fresh))
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()  # type: ignore[operator]  # torch's modules share no type that has it
        for now, drawn in zip(_tensors(model), _tensors(fresh), strict=True):
            now.copy_(drawn)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that can draw weights; those with parameters all can."""
    for name, module in model.named_modules():
        if callable(getattr(module, "reset_parameters", None)):
            yield module
        elif any(True for _ in module.parameters(recurse=False)):
            raise ModelError(
                f"module '{name}': expected a `reset_parameters` method that draws its weights, "
                f"got {type(module).__name__} without one"
            )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
