"""The recipe's optimizer, and its state from an earlier run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pruning.errors import CheckpointError
from pruning.policy import Recipe


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> Optimizer:
    """Return SGD with Nesterov's momentum, or AdamW with `momentum` as its first beta; weight decay on all."""
    rate, decay, momentum = recipe.learning_rate, recipe.weight_decay, recipe.momentum
    if recipe.optimizer == "adamw":
        return AdamW(parameters, rate, betas=(momentum, 0.999), weight_decay=decay)
    return SGD(parameters, rate, momentum, weight_decay=decay, nesterov=momentum > 0)


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer.state_dict()` returned.

    Raises:
        CheckpointError: it is of another network.
    """
    place = "resume: the optimizer's state does not fit this network"
    try:
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: {error}") from None
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                shapes = f"expected {name} of {tuple(parameter.shape)}, got {tuple(value.shape)}"
                raise CheckpointError(f"{place}: {shapes}")
