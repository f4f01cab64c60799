"""The run of a training: seeded epochs of steps, what each epoch reports, and the state that a later run goes on from.

`fine_tune` and `fine_tune_s1` are the ways in.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruning.data.images import ImageSplit
from pruning.errors import CheckpointError, DataError, PruningError
from pruning.modes import in_mode
from pruning.optimizers import load_state
from pruning.precision import uses_channels_last
from pruning.schedule import learning_rate_at
from pruning.steps import Objective, Step

_STATE_FORMAT = 1
_STEPS_BETWEEN_LOOKS = 32  # reading a loss waits for the device


class TrainingError(PruningError):
    """A loss that is no longer finite."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean over the images, as trained on, those of the auxiliary heads included.
        learning_rate: of the last step.
        seconds: wall time of the epoch.
        images: how many were trained on.
        auxiliary_loss: mean over the images of the heads' weighted losses, summed; 0 without heads.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    images: int
    _state: Callable[[], dict[str, Any]] = field(repr=False, compare=False)
    auxiliary_loss: float = 0.0

    @property
    def final_loss(self) -> float:
        """Mean over the images of the network's own loss."""
        return self.loss - self.auxiliary_loss

    def state(self) -> dict[str, Any]:
        """Return what `fine_tune(resume=…)` needs beside the network's own `state_dict()`.

        Plain values and tensors: `torch.load(weights_only=True)` reads it back. The auxiliary heads are in it.

        Raises:
            PruningError: the next epoch has begun.
        """
        return self._state()


class Training:
    """One run.

    Args:
        objective: what is minimised, on the device where the training is.
        step: what is done with a batch.
        train: the images.
        seed: of order, augmentation and dropout.
        step_decay: the learning rate is the schedule's times this to the number of batches so far.
    """

    def __init__(
        self, objective: Objective, step: Step, train: ImageSplit, seed: int, *, step_decay: float = 1.0
    ) -> None:
        self.objective, self.step, self.train, self.seed, self.step_decay = objective, step, train, seed, step_decay
        self.recipe, self.device, self.auxiliary = objective.recipe, objective.device, objective.auxiliary
        self.steps = _steps_per_epoch(len(train), self.recipe.batch_size)
        channels_last = uses_channels_last(self.recipe.channels_last, self.device, bfloat16=objective.bfloat16)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        objective.model.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing in its overloads
        for optimizer in step.optimizers.values():
            optimizer.zero_grad()  # gradients of the caller's
        self.finished, self.running = 0, False

    def epochs(self) -> Iterator[Epoch]:
        """Train; yield after every epoch."""
        while self.finished < self.recipe.epochs:
            self.running = True
            epoch = self._train_epoch(self.finished + 1)
            self.finished, self.running = epoch.epoch, False
            yield epoch

    def _train_epoch(self, number: int) -> Epoch:
        started, losses, rate = time.perf_counter(), _Losses(number), 0.0
        first = (number - 1) * self.steps
        with self._prepared(number) as generator:
            batches = self.train.batches(
                self.recipe.batch_size,
                shuffle=True,
                augment=self.recipe.augment,
                generator=generator,
                device=self.device,
            )
            for step, (images, labels) in zip(range(first, first + self.steps), batches, strict=False):
                rate = learning_rate_at(step, self.steps, self.recipe) * self.step_decay**step
                if images.dim() == 4:
                    images = images.contiguous(memory_format=self.memory_format)
                losses.add(self.step(images, labels, rate), len(images))
        final, *of_heads = losses.means()
        auxiliary, seconds = sum(of_heads, 0.0), time.perf_counter() - started
        return Epoch(
            number, final + auxiliary, rate, seconds, losses.images, lambda: self._state_after(number), auxiliary
        )

    @contextmanager
    def _prepared(self, number: int) -> Iterator[torch.Generator]:
        """Seed the epoch, put the networks in their modes and attach the heads; all is as found afterwards."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}".encode()).digest()[:7], "big")
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([self.device] if self.device.type == "cuda" else []))
            stack.enter_context(in_mode(self.objective.model, training=True))
            if self.objective.teacher is not None:
                stack.enter_context(in_mode(self.objective.teacher, training=False))
            if self.auxiliary is not None:
                stack.enter_context(in_mode(self.auxiliary.heads, training=True))
                stack.enter_context(self.auxiliary.attached(self.objective.model))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every accelerator, too
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
                torch.cuda.manual_seed(seed)
            yield torch.Generator().manual_seed(seed + 1)

    def _about(self) -> dict[str, Any]:
        """Return what a resumed run shares with the one before."""
        about: dict[str, Any] = {
            "format": _STATE_FORMAT,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.seed,
        }
        if self.auxiliary is not None:
            placement = self.auxiliary.placement.model_dump(mode="json")
            about["auxiliary"] = {"names": list(self.auxiliary.names), "placement": placement, **self.step.options}
        return about

    def _state_after(self, number: int) -> dict[str, Any]:
        if self.running or self.finished != number:
            raise PruningError(f"epoch {number}: expected state() before the next epoch begins")
        state = self._about() | {"epoch": number}
        if self.auxiliary is not None:
            state["heads"] = self.auxiliary.state_dict()
        state |= {name: optimizer.state_dict() for name, optimizer in self.step.optimizers.items()}
        return copy.deepcopy(state)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on behind the epoch that `Epoch.state()` speaks of.

        Raises:
            CheckpointError: the state of another run.
        """
        expected = self._about()
        needed = {*expected, "epoch", *self.step.optimizers, *(["heads"] if self.auxiliary is not None else [])}
        missing = sorted(needed.difference(state))
        if missing:
            raise CheckpointError(f"resume: expected the state of an epoch, got one without {', '.join(missing)}")
        for name, value in expected.items():
            if state[name] != value:
                raise CheckpointError(f"resume: expected {name} {value}, got {state[name]}")
        if self.auxiliary is None and "auxiliary" in state:
            raise CheckpointError("resume: expected a run without auxiliary losses, got the state of one with them")
        for name, optimizer in self.step.optimizers.items():
            load_state(optimizer, state[name])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["heads"])
        self.finished = int(state["epoch"])


class _Losses:
    """Mean losses of an epoch, looked at every few steps only."""

    def __init__(self, epoch: int) -> None:
        self.images = 0
        self._epoch = epoch
        self._steps = 0
        self._totals: list[float] = []
        self._unseen: list[tuple[tuple[Tensor, ...], int]] = []

    def add(self, losses: tuple[Tensor, ...], images: int) -> None:
        self._unseen.append((losses, images))
        if len(self._unseen) == _STEPS_BETWEEN_LOOKS:
            self._look()

    def means(self) -> list[float]:
        self._look()
        return [total / self.images for total in self._totals]

    def _look(self) -> None:
        if not self._unseen:
            return
        rows = torch.stack([loss for losses, _ in self._unseen for loss in losses]).view(len(self._unseen), -1).tolist()
        self._totals = self._totals or [0.0] * len(rows[0])
        for values, (_, images) in zip(rows, self._unseen, strict=True):
            self._steps += 1
            for place, value in enumerate(values):
                if not abs(value) < float("inf"):
                    raise TrainingError(
                        f"epoch {self._epoch}, step {self._steps}: expected a finite loss, got {value}; "
                        f"a lower learning_rate, warmup_epochs or clip_norm may help"
                    )
                self._totals[place] += value * images
            self.images += images
        self._unseen.clear()


def _steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the batches of an epoch without a last one of a single image."""
    single = batch_size > 1 and images % batch_size == 1
    steps = -(-images // batch_size) - single
    if steps == 0:
        raise DataError(f"fine_tune: expected at least 2 training images, got {images}")
    return steps
