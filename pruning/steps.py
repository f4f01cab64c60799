"""One step of training: what it minimises, and how it moves the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from pruning.accumulation import Accumulation, Found, Gradients, weighted
from pruning.auxiliary import AuxiliaryLosses
from pruning.errors import OptionError
from pruning.losses import CrossEntropy, Loss, distance_from_teacher
from pruning.optimizers import make_optimizer
from pruning.policy import Recipe
from pruning.precision import uses_bfloat16


class Objective:
    """The losses of a network on one batch: by the labels and the teacher, and those of the heads attached to it."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        *,
        teacher: nn.Module | None = None,
        auxiliary: AuxiliaryLosses | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self.teacher, self.auxiliary = teacher, auxiliary
        self.head_loss = CrossEntropy(recipe.label_smoothing)
        self.label_loss = loss or self.head_loss
        self.bfloat16 = uses_bfloat16(recipe.precision, model, device)
        self.network = torch.compile(model) if recipe.compile else model
        self.parameters = _trained(model)
        self.head_parameters = _trained(auxiliary.heads) if auxiliary is not None else []
        trained = model if auxiliary is None else nn.ModuleList([model, auxiliary.heads])
        self.over = Accumulation(trained, _nothing if auxiliary is None else auxiliary.forget)

    def run(self, images: Tensor) -> Any:
        """Return what the network says of images `[images, channels, height, width]`."""
        try:
            with self._autocast():
                return self.network(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"recipe.compile: expected a working compiler, got {reason}; set it to false") from error

    def final(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run the network; return its own loss."""
        outputs = self.run(images)
        with self._autocast():
            loss = self.label_loss(outputs, labels)
            if self.teacher is None:
                return loss
            with torch.no_grad():
                taught = self.teacher(images)
            weight = self.recipe.distillation
            return (1 - weight) * loss + weight * distance_from_teacher(outputs, taught, self.recipe.temperature)

    def of_heads(self, labels: Tensor) -> Tensor:
        """Return the sum of the heads' weighted losses for the last run."""
        assert self.auxiliary is not None
        with self._autocast():
            return torch.stack(self.auxiliary.losses(labels, self.head_loss)).sum()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def _nothing() -> None:
    """Let go of nothing."""


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class Step(Protocol):
    """What is done with one batch.

    Attributes:
        optimizers: by the name that they have in the state of an epoch.
        options: what a resumed run must share, beside the recipe.
    """

    optimizers: Mapping[str, Optimizer]
    options: Mapping[str, Any]

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> tuple[Tensor, ...]:
        """Move the weights; return the final loss and, with heads, the sum of theirs, scalars."""
        ...


class OneStep:
    """One step on the sum of all losses."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.options: Mapping[str, Any] = {}
        self.parameters = [*objective.parameters, *objective.head_parameters]
        self.optimizer = make_optimizer(self.parameters, objective.recipe)
        self.optimizers: Mapping[str, Optimizer] = {"optimizer": self.optimizer}

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> tuple[Tensor, ...]:
        """Move network and heads; see `Step`."""
        losses, _ = self.objective.over(images, labels, self._backward)
        _move(self.optimizer, learning_rate, self.objective.recipe.clip_norm)
        return losses

    def _backward(self, images: Tensor, labels: Tensor, share: float) -> Found:
        losses = [self.objective.final(images, labels)]
        if self.objective.auxiliary is not None:
            losses.append(self.objective.of_heads(labels))
        losses = [weighted(loss, share) for loss in losses]
        reduce(add, losses).backward()
        return tuple(loss.detach() for loss in losses), ()


class AlgorithmS1:
    """One step on the heads' losses, then one on the final loss, each with an optimizer of its own.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, supplement S2.

    Args:
        objective: of a network with heads.
        step_decay: τ of the paper, for the state of an epoch only.
        both_gradients_first: take both gradients at the old weights, in one forward pass; then make both steps.
    """

    def __init__(self, objective: Objective, *, step_decay: float = 1.0, both_gradients_first: bool = False) -> None:
        own, recipe = objective.parameters, objective.recipe
        self.objective, self.both_gradients_first = objective, both_gradients_first
        self.to_heads = make_optimizer([*own, *objective.head_parameters], recipe)
        self.to_end = make_optimizer(own, recipe)
        self.count = len(_parameters(self.to_heads))
        self.optimizers: Mapping[str, Optimizer] = {"optimizer": self.to_end, "optimizer_to_heads": self.to_heads}
        self.options: Mapping[str, Any] = {"step_decay": step_decay, "both_gradients_first": both_gradients_first}

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> tuple[Tensor, ...]:
        """Move network and heads twice; see `Step`."""
        over, clip_norm = self.objective.over, self.objective.recipe.clip_norm
        if self.both_gradients_first:
            (final, auxiliary), gradients = over(images, labels, self._of_both)
            to_heads, to_end = gradients[: self.count], gradients[self.count :]
            _move(self.to_heads, learning_rate, clip_norm, to_heads)
        else:
            (auxiliary,), to_heads = over(images, labels, self._of_heads)
            _move(self.to_heads, learning_rate, clip_norm, to_heads)
            (final,), to_end = over(images, labels, self._of_end)
        _move(self.to_end, learning_rate, clip_norm, to_end)
        return final, auxiliary

    def _of_both(self, images: Tensor, labels: Tensor, share: float) -> Found:
        final = weighted(self.objective.final(images, labels), share)
        auxiliary = weighted(self.objective.of_heads(labels), share)
        to_heads = _gradients(auxiliary, self.to_heads, keep_graph=True)
        return (final.detach(), auxiliary.detach()), (*to_heads, *_gradients(final, self.to_end))

    def _of_heads(self, images: Tensor, labels: Tensor, share: float) -> Found:
        self.objective.run(images)
        auxiliary = weighted(self.objective.of_heads(labels), share)
        return (auxiliary.detach(),), _gradients(auxiliary, self.to_heads)

    def _of_end(self, images: Tensor, labels: Tensor, share: float) -> Found:
        with _running_statistics_frozen(self.objective.model):
            final = weighted(self.objective.final(images, labels), share)
        return (final.detach(),), _gradients(final, self.to_end)


def _gradients(loss: Tensor, optimizer: Optimizer, *, keep_graph: bool = False) -> Gradients:
    """Return the gradient for each of the optimizer's parameters, None where the loss does not depend on it."""
    return torch.autograd.grad(loss, _parameters(optimizer), retain_graph=keep_graph, allow_unused=True)


def _move(
    optimizer: Optimizer,
    learning_rate: float,
    clip_norm: float | None,
    gradients: Sequence[Tensor | None] | None = None,
) -> None:
    """Make one step with these gradients or those in place; parameters without one stay, without weight decay."""
    optimizer.param_groups[0]["lr"] = learning_rate
    parameters = _parameters(optimizer)
    if gradients is not None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    optimizer.zero_grad()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    return parameters


@contextmanager
def _running_statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch without a trace in the running statistics or in their count of batches."""
    layers = [layer for layer in model.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
