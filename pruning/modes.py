"""Train and eval mode for a while; afterwards each module is in the mode, and has the statistics, it was found with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module of `model` in train or in eval mode and give each its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def batch_statistics(model: nn.Module, *, on: bool = True) -> Iterator[None]:
    """Let batch norm take the statistics of each batch for a while; the running ones are as found at the end.

    Args:
        model: its other modules stay in their modes.
        on: False changes nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if on else []
    before = [(norm, norm.training, {name: t.clone() for name, t in norm.named_buffers()}) for norm in norms]
    try:
        for norm in norms:
            norm.training = True
        yield
    finally:
        for norm, training, buffers in before:
            norm.training = training
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
