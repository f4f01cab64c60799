"""Train or fine-tune a network as a recipe says: one result an epoch, equal seeds give equal weights."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.data.images import ImageSplit
from pruning.errors import CheckpointError, DataError, OptionError, PruningError
from pruning.losses import CrossEntropy, Loss, distance_from_teacher, main_logits
from pruning.modes import in_mode
from pruning.optimizers import load_state, make_optimizer
from pruning.policy import Recipe
from pruning.precision import uses_bfloat16, uses_channels_last
from pruning.schedule import learning_rate_at

_STATE_FORMAT = 1
_STEPS_BETWEEN_LOOKS = 32  # reading a loss waits for the device


class TrainingError(PruningError):
    """A loss that is no longer finite."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean over the images, as trained on.
        learning_rate: of the last step.
        seconds: wall time of the epoch.
        images: how many were trained on.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    images: int
    _state: Callable[[], dict[str, Any]] = field(repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """Return what `fine_tune(resume=…)` needs beside the network's own `state_dict()`.

        Plain values and tensors: `torch.load(weights_only=True)` reads it back.

        Raises:
            PruningError: the next epoch has begun.
        """
        return self._state()


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in [0, 1] and mean cross-entropy."""

    accuracy: float
    loss: float


def evaluate(
    model: nn.Module, split: ImageSplit, *, device: torch.device | str = "cpu", batch_size: int = 512
) -> Evaluation:
    """Return accuracy and loss over all images, in eval mode and full precision.

    Args:
        model: moved to `device`; the mode of each module is as found afterwards.
        split: images in their own order, without augmentation.
        device: where to run.
        batch_size: images in a batch.

    Raises:
        DataError: no images.
    """
    model.to(device)
    correct, loss, images = 0, 0.0, 0
    with in_mode(model, training=False), torch.no_grad():
        for batch, labels in split.batches(batch_size, device=device):
            logits = main_logits(model(batch)).float()
            correct += int((logits.argmax(dim=1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            images += len(labels)
    if images == 0:
        raise DataError("evaluate: expected at least one image, got none")
    return Evaluation(accuracy=correct / images, loss=loss / images)


def fine_tune(
    model: nn.Module,
    train: ImageSplit,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    resume: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place; yields after every epoch, so that the caller can evaluate, save or stop.

    Equal arguments give equal weights (on CUDA up to its non-deterministic kernels). Torch's global random state and
    the mode of each module are as found whenever the caller has the turn; every parameter that requires a gradient is
    trained, with weight decay. A last batch of one image, which batch norm cannot take, is left out.

    Args:
        model: moved to `device`; the networks of torchvision with auxiliary heads add these heads' losses.
        train: the images, shuffled anew each epoch.
        recipe: how to train. AdamW takes `momentum` as its first beta.
        teacher: the network whose soft labels `recipe.distillation` weighs; moved to `device`, in eval mode.
        device: where to train.
        seed: of order, augmentation and dropout.
        resume: `Epoch.state()` of the last epoch that was run; the network must have its weights and buffers of then.
        loss: of the network's output and the labels, instead of cross-entropy with label smoothing.

    Raises:
        OptionError: distillation without a teacher, nothing to train, `compile` without a compiler.
        DataError: no step in an epoch.
        CheckpointError: a `resume` of another run.
        TrainingError: while iterating, the loss is no longer finite.
    """
    if recipe.distillation > 0 and teacher is None:
        raise OptionError(f"recipe.distillation: expected a teacher for weight {recipe.distillation}, got none")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError("fine_tune: expected a parameter that requires a gradient, got a frozen network")
    if recipe.epochs == 0:
        return iter(())
    training = _Training(model, train, recipe, teacher, torch.device(device), seed, loss)
    if resume is not None:
        training.resume(resume)
    return training.epochs()


class _Training:
    """One run of `fine_tune`."""

    def __init__(
        self,
        model: nn.Module,
        train: ImageSplit,
        recipe: Recipe,
        teacher: nn.Module | None,
        device: torch.device,
        seed: int,
        loss: Loss | None,
    ) -> None:
        self.model, self.train, self.recipe, self.device, self.seed = model.to(device), train, recipe, device, seed
        self.steps = _steps_per_epoch(len(train), recipe.batch_size)
        self.label_loss = loss or CrossEntropy(recipe.label_smoothing)
        self.teacher = teacher.to(device) if teacher is not None and recipe.distillation > 0 else None
        self.bfloat16 = uses_bfloat16(recipe.precision, model, device)
        channels_last = uses_channels_last(recipe.channels_last, device, bfloat16=self.bfloat16)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing in its overloads
        self.network: Callable[[Tensor], Any] = torch.compile(model) if recipe.compile else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.parameters, recipe)
        self.optimizer.zero_grad()  # gradients of the caller's
        self.finished, self.running = 0, False

    def epochs(self) -> Iterator[Epoch]:
        while self.finished < self.recipe.epochs:
            self.running = True
            epoch = self._train_epoch(self.finished + 1)
            self.finished, self.running = epoch.epoch, False
            yield epoch

    def _train_epoch(self, number: int) -> Epoch:
        started, losses, rate = time.perf_counter(), _Losses(number), 0.0
        with self._prepared(number) as generator:
            batches = self.train.batches(
                self.recipe.batch_size,
                shuffle=True,
                augment=self.recipe.augment,
                generator=generator,
                device=self.device,
            )
            for step, (images, labels) in zip(range(self.steps), batches, strict=False):
                rate = learning_rate_at((number - 1) * self.steps + step, self.steps, self.recipe)
                losses.add(self._step(images, labels, rate), len(images))
        mean, seconds = losses.mean(), time.perf_counter() - started
        return Epoch(number, mean, rate, seconds, losses.images, lambda: self._state_after(number))

    @contextmanager
    def _prepared(self, number: int) -> Iterator[torch.Generator]:
        """Seed the epoch and put the networks in their modes; all is as found afterwards."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}".encode()).digest()[:7], "big")
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([self.device] if self.device.type == "cuda" else []))
            stack.enter_context(in_mode(self.model, training=True))
            if self.teacher is not None:
                stack.enter_context(in_mode(self.teacher, training=False))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every accelerator, too
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
                torch.cuda.manual_seed(seed)
            yield torch.Generator().manual_seed(seed + 1)

    def _step(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._loss(images.contiguous(memory_format=self.memory_format) if images.dim() == 4 else images, labels)
        loss.backward()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self._forward(images)
            loss = self.label_loss(outputs, labels)
            if self.teacher is None:
                return loss
            with torch.no_grad():
                taught = self.teacher(images)
            weight = self.recipe.distillation
            return (1 - weight) * loss + weight * distance_from_teacher(outputs, taught, self.recipe.temperature)

    def _forward(self, images: Tensor) -> Any:
        try:
            return self.network(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"recipe.compile: expected a working compiler, got {reason}; set it to false") from error

    def _state_after(self, number: int) -> dict[str, Any]:
        if self.running or self.finished != number:
            raise PruningError(f"epoch {number}: expected state() before the next epoch begins")
        return {
            "format": _STATE_FORMAT,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.seed,
            "epoch": number,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        expected = {"format": _STATE_FORMAT, "recipe": self.recipe.model_dump(mode="json"), "seed": self.seed}
        missing = sorted({*expected, "epoch", "optimizer"}.difference(state))
        if missing:
            raise CheckpointError(f"resume: expected the state of an epoch, got one without {', '.join(missing)}")
        for name, value in expected.items():
            if state[name] != value:
                raise CheckpointError(f"resume: expected {name} {value}, got {state[name]}")
        load_state(self.optimizer, state["optimizer"])
        self.finished = int(state["epoch"])


class _Losses:
    """Mean loss of an epoch, looked at every few steps only."""

    def __init__(self, epoch: int) -> None:
        self.images = 0
        self._epoch = epoch
        self._steps = 0
        self._total = 0.0
        self._unseen: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, images: int) -> None:
        self._unseen.append((loss, images))
        if len(self._unseen) == _STEPS_BETWEEN_LOOKS:
            self._look()

    def mean(self) -> float:
        self._look()
        return self._total / self.images

    def _look(self) -> None:
        values = torch.stack([loss for loss, _ in self._unseen]).tolist() if self._unseen else []
        for value, (_, images) in zip(values, self._unseen, strict=True):
            self._steps += 1
            if not abs(value) < float("inf"):
                raise TrainingError(
                    f"epoch {self._epoch}, step {self._steps}: expected a finite loss, got {value}; "
                    f"a lower learning_rate, warmup_epochs or clip_norm may help"
                )
            self._total += value * images
            self.images += images
        self._unseen.clear()


def _steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the batches of an epoch without a last one of a single image."""
    single = batch_size > 1 and images % batch_size == 1
    steps = -(-images // batch_size) - single
    if steps == 0:
        raise DataError(f"fine_tune: expected at least 2 training images, got {images}")
    return steps
