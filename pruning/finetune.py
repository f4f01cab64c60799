"""Train or fine-tune a network as a recipe says: one result an epoch, equal seeds give equal weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.data.images import ImageSplit
from pruning.errors import DataError, OptionError
from pruning.losses import Loss, main_logits
from pruning.memory import Portions
from pruning.modes import in_mode
from pruning.policy import Recipe
from pruning.steps import AlgorithmS1, Objective, OneStep, Step
from pruning.training import Epoch, Training, TrainingError

__all__ = ["Epoch", "Evaluation", "TrainingError", "check_recipe", "check_trainable", "evaluate", "fine_tune"]


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
        batch_size: images in a batch; fewer at a time where memory runs out.

    Raises:
        DataError: no images.
        DeviceMemoryError: memory does not hold one image.
    """
    model.to(device)
    correct, loss, images, portions = 0, 0.0, 0, Portions("evaluate")
    with in_mode(model, training=False), torch.no_grad():
        for batch, labels in split.batches(batch_size, device=device):
            logits = portions.map(lambda part: main_logits(model(part)).float(), batch)
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
    auxiliary: AuxiliaryLosses | None = None,
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

    Where memory runs out, a batch is run in parts, half as many images at a time until they fit, and for the rest of
    the training; their gradients add up to the batch's. Only batch norm notices: it sees the parts.

    Args:
        model: moved to `device`; the networks of torchvision with auxiliary heads add these heads' losses.
        train: the images, shuffled anew each epoch.
        recipe: how to train. AdamW takes `momentum` as its first beta.
        auxiliary: heads that train along as `recipe.auxiliary` says, by cross-entropy; moved to `device`.
        teacher: the network whose soft labels `recipe.distillation` weighs; moved to `device`, in eval mode.
        device: where to train.
        seed: of order, augmentation and dropout.
        resume: `Epoch.state()` of the last epoch that was run; the network must have its weights and buffers of then.
            The heads get theirs from it.
        loss: of the network's output and the labels, a mean over the images, instead of cross-entropy with label
            smoothing.

    Raises:
        OptionError: distillation without a teacher or with Algorithm S1, nothing to train, `compile` without a compiler
            or with heads.
        DataError: no step in an epoch, or while iterating a label that the heads have no class for.
        CheckpointError: a `resume` of another run.
        PruningError: while iterating, feature maps that do not fit the heads.
        TrainingError: while iterating, the loss is no longer finite.
        DeviceMemoryError: while iterating, memory does not hold one image.
    """
    if recipe.auxiliary == "none":
        auxiliary = None
    sequential = auxiliary is not None and recipe.auxiliary == "sequential"
    if auxiliary is not None:
        check_recipe(recipe, distillation=not sequential)
    if recipe.distillation > 0 and teacher is None:
        raise OptionError(f"recipe.distillation: expected a teacher for weight {recipe.distillation}, got none")
    check_trainable(model, "fine_tune")
    if recipe.epochs == 0:
        return iter(())
    place = torch.device(device)
    model.to(place)
    if auxiliary is not None:
        auxiliary.heads.to(place)
    taught_by = teacher.to(place) if teacher is not None and recipe.distillation > 0 else None
    objective = Objective(model, recipe, place, teacher=taught_by, auxiliary=auxiliary, loss=loss)
    step: Step = AlgorithmS1(objective) if sequential else OneStep(objective)
    training = Training(objective, step, train, seed)
    if resume is not None:
        training.resume(resume)
    return training.epochs()


def check_recipe(recipe: Recipe, *, distillation: bool = False) -> None:
    """Refuse what does not go with auxiliary heads.

    Args:
        recipe: how to train with heads.
        distillation: whether there is one loss that a teacher's soft labels can join.

    Raises:
        OptionError: `compile`, which does not see the hooks of the heads, or distillation where it has no place.
    """
    if recipe.distillation > 0 and not distillation:
        raise OptionError(
            f"recipe.distillation: expected 0 with auxiliary losses on their own, got {recipe.distillation}"
        )
    if recipe.compile:
        raise OptionError("recipe.compile: expected false with auxiliary losses, got true")


def check_trainable(model: nn.Module, place: str) -> None:
    """Refuse a network of which nothing is trained.

    Raises:
        OptionError: no parameter requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError(f"{place}: expected a parameter that requires a gradient, got a frozen network")
