"""Training with auxiliary losses: the heads first, then network and heads together by Algorithm S1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses, check_labels
from pruning.data.images import ImageSplit
from pruning.errors import OptionError
from pruning.finetune import check_recipe, check_trainable, fine_tune
from pruning.losses import CrossEntropy
from pruning.modes import in_mode
from pruning.policy import Recipe
from pruning.steps import AlgorithmS1, Objective
from pruning.training import Epoch, Training


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
    check_recipe(recipe)
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
    resume: Mapping[str, Any] | None = None,
) -> Iterator[Epoch]:
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
        resume: `Epoch.state()` of the last epoch that was run, as for `fine_tune`.

    Raises:
        OptionError: a frozen network, a τ outside (0, 1], a recipe with distillation or `compile`.
        DataError: no step in an epoch, or while iterating a label that the heads have no class for.
        CheckpointError: a `resume` of another run.
        PruningError: while iterating, feature maps that do not fit the heads.
        TrainingError: while iterating, a loss is no longer finite.
    """
    check_recipe(recipe)
    if not 0 < step_decay <= 1:
        raise OptionError(f"step_decay: expected above 0, at most 1, got {step_decay}")
    check_trainable(model, "fine_tune_s1")
    place = torch.device(device)
    model.to(place)
    auxiliary.heads.to(place)
    objective = Objective(model, recipe, place, auxiliary=auxiliary)
    step = AlgorithmS1(objective, step_decay=step_decay, both_gradients_first=both_gradients_first)
    training = Training(objective, step, train, seed, step_decay=step_decay)
    if resume is not None:
        training.resume(resume)
    return training.epochs()
