"""Training with auxiliary losses: the heads first, then network and heads together by Algorithm S1."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from pruning.auxiliary import AuxiliaryLosses, check_labels
from pruning.data.images import ImageSplit
from pruning.errors import DataError, OptionError
from pruning.finetune import Epoch, TrainingError, fine_tune
from pruning.losses import CrossEntropy
from pruning.modes import in_mode
from pruning.optimizers import make_optimizer
from pruning.policy import Recipe
from pruning.precision import uses_bfloat16, uses_channels_last
from pruning.schedule import learning_rate_at


def train_heads(
    model: nn.Module,
    auxiliary: AuxiliaryLosses,
    train: ImageSplit,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    resume: Mapping[str, Any] | None = None,
) -> Iterator[Epoch]:
    """Train the heads on a frozen network in eval mode; yields after every epoch, with the sum of the heads' losses.

    Weights, buffers, modes and `requires_grad` of the network are as found whenever the caller has the turn. The
    heads are trained in place, each on its own loss: `placement.weight` plays no part.

    Args:
        model: moved to `device`.
        auxiliary: the heads; moved to `device`.
        train: the images.
        recipe: how to train, without distillation and `compile`.
        device: where to train.
        seed: of order and augmentation.
        resume: `Epoch.state()` of the last epoch that was run; `auxiliary.heads` must have the weights of then.

    Raises:
        OptionError: a recipe with distillation or `compile`.
        DataError: no step in an epoch, or a label that the heads have no class for.
        PruningError: feature maps that do not fit the heads.
    """
    _check_recipe(recipe)
    model.to(device)
    return fine_tune(
        _OnFrozen(model, auxiliary),
        train,
        recipe,
        device=device,
        seed=seed,
        resume=resume,
        loss=_SumOfHeads(auxiliary.num_classes, recipe.label_smoothing),
    )


class _OnFrozen(nn.Module):
    """The heads as a network of its own: images in, the logits of every head out."""

    def __init__(self, model: nn.Module, auxiliary: AuxiliaryLosses) -> None:
        super().__init__()
        self.heads = auxiliary.heads
        self._frozen = (model, auxiliary)  # in a tuple the network is none of this one's modules

    def forward(self, images: Tensor) -> list[Tensor]:
        model, auxiliary = self._frozen
        with auxiliary.attached(model):
            with torch.no_grad(), in_mode(model, training=False):
                model(images)
            return auxiliary.logits()


class _SumOfHeads:
    def __init__(self, num_classes: int, label_smoothing: float) -> None:
        self.num_classes, self.loss = num_classes, CrossEntropy(label_smoothing)

    def __call__(self, outputs: list[Tensor], labels: Tensor) -> Tensor:
        check_labels(labels, self.num_classes)
        return torch.stack([self.loss(logits, labels) for logits in outputs]).sum()


@dataclass(frozen=True)
class StageEpoch:
    """One finished epoch of Algorithm S1.

    Attributes:
        epoch: counted from 1.
        auxiliary_loss: mean over the images of the heads' weighted losses, summed.
        final_loss: mean over the images of the network's own loss.
        learning_rate: of the last step.
        seconds: wall time of the epoch.
        images: how many were trained on.
    """

    epoch: int
    auxiliary_loss: float
    final_loss: float
    learning_rate: float
    seconds: float
    images: int


def fine_tune_s1(
    model: nn.Module,
    auxiliary: AuxiliaryLosses,
    train: ImageSplit,
    recipe: Recipe,
    *,
    step_decay: float = 1.0,
    both_gradients_first: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Iterator[StageEpoch]:
    """Train network and heads by Algorithm S1: each batch makes a step on the auxiliary losses, then one on the final.

    The step on the auxiliary losses moves the heads and what lies in front of them. Each of the two steps has an
    optimizer, hence momentum and weight decay, of its own, as in the authors' code. Batch norm's running statistics
    move once a batch, in the first forward pass. Equal arguments give equal weights; torch's global random state,
    modes and hooks are as found whenever the caller has the turn. A last batch of one image is left out.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, supplement S2.
    Differs: the final loss gets a second forward pass with the new weights; the authors' code goes back through the
    old activations, which torch refuses. With several heads their losses are summed; the paper has one a stage.

    Args:
        model: moved to `device`.
        auxiliary: the heads; moved to `device`, trained along.
        train: the images, shuffled anew each epoch.
        recipe: how to train, without distillation and `compile`.
        step_decay: τ of the paper: the learning rate is the schedule's times τ to the number of batches so far.
        both_gradients_first: take both gradients at the old weights, in one forward pass; then make both steps.
        device: where to train.
        seed: of order, augmentation and dropout.

    Raises:
        OptionError: a frozen network, a τ outside (0, 1], a recipe with distillation or `compile`.
        DataError: no step in an epoch, or while iterating a label that the heads have no class for.
        PruningError: while iterating, feature maps that do not fit the heads.
        TrainingError: while iterating, a loss is no longer finite.
    """
    _check_recipe(recipe)
    if not 0 < step_decay <= 1:
        raise OptionError(f"step_decay: expected above 0, at most 1, got {step_decay}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError("fine_tune_s1: expected a parameter that requires a gradient, got a frozen network")
    if len(train) < min(2, recipe.batch_size):
        raise DataError(f"fine_tune_s1: expected at least 2 training images, got {len(train)}")
    return _AlgorithmS1(model, auxiliary, recipe, step_decay, both_gradients_first, torch.device(device)).epochs(
        train, seed
    )


def _check_recipe(recipe: Recipe) -> None:
    if recipe.distillation > 0:
        raise OptionError(f"recipe.distillation: expected 0 with auxiliary losses, got {recipe.distillation}")
    if recipe.compile:
        raise OptionError("recipe.compile: expected false with auxiliary losses, got true")


class _AlgorithmS1:
    """One run of `fine_tune_s1`."""

    def __init__(
        self,
        model: nn.Module,
        auxiliary: AuxiliaryLosses,
        recipe: Recipe,
        step_decay: float,
        both_gradients_first: bool,
        device: torch.device,
    ) -> None:
        self.bfloat16 = uses_bfloat16(recipe.precision, model, device)
        channels_last = uses_channels_last(recipe.channels_last, device, bfloat16=self.bfloat16)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model.to(device).to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing in its overloads
        auxiliary.heads.to(device)
        self.model, self.auxiliary, self.recipe, self.device = model, auxiliary, recipe, device
        self.step_decay, self.both_gradients_first = step_decay, both_gradients_first
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        heads = [parameter for parameter in auxiliary.parameters() if parameter.requires_grad]
        self.to_heads, self.to_end = make_optimizer([*own, *heads], recipe), make_optimizer(own, recipe)
        self.loss = CrossEntropy(recipe.label_smoothing)
        self.steps = 0

    def epochs(self, train: ImageSplit, seed: int) -> Iterator[StageEpoch]:
        for number in range(1, self.recipe.epochs + 1):
            yield self._train_epoch(number, train, seed)

    def _train_epoch(self, number: int, train: ImageSplit, seed: int) -> StageEpoch:
        started, images, totals = time.perf_counter(), 0, torch.zeros(2, dtype=torch.float64, device=self.device)
        size, rate = self.recipe.batch_size, 0.0
        count = -(-len(train) // size) - (size > 1 and len(train) % size == 1)
        with self._prepared(seed, number) as generator:
            batches = train.batches(
                size, shuffle=True, augment=self.recipe.augment, generator=generator, device=self.device
            )
            for (batch, labels), _ in zip(batches, range(count), strict=False):
                rate = learning_rate_at(self.steps, count, self.recipe) * self.step_decay**self.steps
                losses = self._step(batch.contiguous(memory_format=self.memory_format), labels, rate)
                totals += len(batch) * losses
                images += len(batch)
                self.steps += 1
        auxiliary_loss, final_loss = (totals / images).tolist()
        if not abs(auxiliary_loss + final_loss) < float("inf"):
            raise TrainingError(
                f"epoch {number}: expected finite losses, got {auxiliary_loss} and {final_loss}; "
                f"a lower learning_rate, warmup_epochs or clip_norm may help"
            )
        return StageEpoch(number, auxiliary_loss, final_loss, rate, time.perf_counter() - started, images)

    @contextmanager
    def _prepared(self, seed: int, number: int) -> Iterator[torch.Generator]:
        """Seed the epoch as `fine_tune` does, attach the heads, train all modules; all is as found afterwards."""
        mixed = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:7], "big")
        cuda = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(cuda))
            stack.enter_context(in_mode(self.model, training=True))
            stack.enter_context(in_mode(self.auxiliary.heads, training=True))
            stack.enter_context(self.auxiliary.attached(self.model))
            torch.default_generator.manual_seed(mixed)  # torch.manual_seed would seed every accelerator, too
            if cuda:
                stack.enter_context(torch.cuda.device(self.device))
                torch.cuda.manual_seed(mixed)
            yield torch.Generator().manual_seed(mixed + 1)

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Return the auxiliary and the final loss of one batch, float64 `[2]`."""
        with self._autocast():
            final = self.loss(self.model(images), labels) if self.both_gradients_first else None
            if final is None:
                self.model(images)
            auxiliary = torch.stack(self.auxiliary.losses(labels, self.loss)).sum()
        to_heads = _gradients(auxiliary, self.to_heads, keep_graph=final is not None)
        if final is None:
            _update(self.to_heads, to_heads, rate, self.recipe.clip_norm)
            with self._autocast(), _running_statistics_frozen(self.model):
                final = self.loss(self.model(images), labels)
            to_end = _gradients(final, self.to_end)
        else:
            to_end = _gradients(final, self.to_end)
            _update(self.to_heads, to_heads, rate, self.recipe.clip_norm)
        _update(self.to_end, to_end, rate, self.recipe.clip_norm)
        return torch.stack([auxiliary.detach(), final.detach()]).double()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def _gradients(loss: Tensor, optimizer: Optimizer, *, keep_graph: bool = False) -> tuple[Tensor | None, ...]:
    """Return the gradient for each of the optimizer's parameters, None where the loss does not depend on it."""
    return torch.autograd.grad(loss, _parameters(optimizer), retain_graph=keep_graph, allow_unused=True)


def _update(optimizer: Optimizer, gradients: Sequence[Tensor | None], rate: float, clip_norm: float | None) -> None:
    """Make one step; parameters without gradient stay, without weight decay."""
    optimizer.param_groups[0]["lr"] = rate
    parameters = _parameters(optimizer)
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
