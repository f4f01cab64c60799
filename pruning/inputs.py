"""Example inputs: one batch, or several inputs of a network by place or by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a network is called with: one batch `[images, …]`, a tuple of inputs in their order, or inputs by name.

Only shapes and types of tensors matter, unless they are whole numbers; what is no tensor is handed on as it is.
"""


def as_arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that a network is called with, in order and by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def without_values(example: Example, images: int) -> Example:
    """Return inputs of some images that have shapes but no values (meta device)."""
    return _each(example, lambda x: torch.empty((images, *x.shape[1:]), dtype=x.dtype, device="meta") if x.dim() else x)


def noise_like(example: Example, model: nn.Module, images: int = 2) -> Example:
    """Return fixed noise for a network, in the type and place of its weights; whole numbers are repeated instead.

    It is the same each time, and the global random numbers are left alone.
    """
    generator = torch.Generator().manual_seed(0)
    weights = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))

    def noise(x: Tensor) -> Tensor:
        if not x.dim() or not x.is_floating_point():
            return x.to(weights.device) if not x.dim() else x[:1].expand(images, *x.shape[1:]).to(weights.device)
        return torch.randn((images, *x.shape[1:]), generator=generator).to(weights.device, weights.dtype)

    return _each(example, noise)


def nudged(example: Example) -> Example:
    """Return inputs that differ in the last places only, in the same way each time; whole numbers as they are."""

    def moved(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        by = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
        return x + 8 * torch.finfo(x.dtype).eps * by * x

    return _each(example, moved)


def shapes(example: Example) -> str:
    """Return the shapes of inputs, for a message."""
    args, kwargs = as_arguments(example)
    told = [*map(_shape, args), *(f"{name}={_shape(value)}" for name, value in kwargs.items())]
    return ", ".join(told)


def run_on(model: Callable[..., Any], example: Example) -> Any:
    """Call a network with inputs."""
    args, kwargs = as_arguments(example)
    return model(*args, **kwargs)


def _each(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {name: changed(value) for name, value in example.items()}
    return tuple(map(changed, example))


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)
