"""CPGMI: a channel counts as far as what the last features know about the labels moves with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, in_parts, register
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.information import Critic, normalised_hsic
from pruning.ranking import NestedRanking
from pruning.statistics import reader_gates

ESTIMATES = ("hsic", "mine")
Information = Callable[[Tensor, Tensor], Tensor]
"""Of features and labels, to differentiate."""


@register("cpgmi")
class CPGMI:
    """Mean over blocks of images of |∂I/∂z|, over the group's L2 norm, for gates z = 1 where channels are read.

    I estimates the information between the labels and the features in front of the last linear layer that runs, or
    the outputs where there is none. The gate's gradient is `Σ x·∂I/∂x` over the block's images and the places where the
    channel's map x is read.

    Paper: Lee et al., Channel Pruning via Gradient of Mutual Information for Light-Weight Convolutional Neural
    Networks, ICIP 2020. That a module estimates mutual information and that statistics of its gradients are the
    importance is from its abstract; the formula is inferred: the paper's text was not to be had.
    Differs: by default I is the normalised HSIC (linear CKA) of features and labels, which needs no training and no
    seed. One module on the last features, where the paper may attach several.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
        block: how many images I is estimated on, regrouped from batches of any size; the last block may be smaller. A
            block of images of one class does not count, nor one of two images, whose normalised HSIC is always 1.
        estimate: `hsic`, or `mine`: a critic that is first trained on the features of all images, in a pass of its own.
        steps: for `mine`, how many steps to train the critic, each on as many images as a block has.
        seed: for `mine`, of the critic's first weights and its draws.
    """

    name: ClassVar[str] = "cpgmi"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = False

    def __init__(
        self, images: int | None = None, block: int = 128, estimate: str = "hsic", steps: int = 300, seed: int = 0
    ) -> None:
        for option, number, least in (("images", images, 1), ("block", block, 3), ("steps", steps, 1)):
            if number is not None and number < least:
                raise OptionError(f"criterion 'cpgmi', {option}: expected at least {least}, got {number}")
        if estimate not in ESTIMATES:
            raise OptionError(f"criterion 'cpgmi', estimate: expected {' or '.join(ESTIMATES)}, got '{estimate}'")
        self.images, self.block, self.estimate, self.steps, self.seed = images, block, estimate, steps, seed

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002
    ) -> NestedRanking:
        """Order every group by its scores; see `Criterion.rank`.

        Raises:
            RankingError: no block that counts.
        """
        if self.estimate == "mine" and isinstance(batches, Iterator):  # it comes once, and is needed twice
            batches = list(calibration(batches, self.name, model, self.images))
        scores = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in groups.items()}
        with evaluating(model):
            information = normalised_hsic if self.estimate == "hsic" else self._critic(model, batches)
            blocks = 0
            # The features are taken behind the gates: the last layer reads a group, too.
            with torch.enable_grad(), reader_gates(model, groups, self.name) as gates, last_features(model) as features:
                for images, labels in self._blocks(model, batches):
                    of_block = {name: torch.zeros_like(score) for name, score in scores.items()}
                    for loss, count in _losses(information, features, images, labels):
                        for name, of_images in gates.slopes(loss, count).items():
                            of_block[name] += of_images.sum(dim=0)
                    for name, slopes in of_block.items():
                        scores[name] += slopes.abs()
                    blocks += 1
        if not blocks:
            raise RankingError(
                f"criterion 'cpgmi': expected at least 3 images of at least two classes in a block of {self.block}, "
                "got no such block"
            )
        return NestedRanking.from_scores(
            self.name, {name: _normalised(score / blocks) for name, score in scores.items()}
        )

    def _blocks(self, model: nn.Module, batches: Batches | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks that count."""
        for images, labels in regrouped(calibration(batches, self.name, model, self.images), self.block):
            if len(labels) > 2 and len(labels.unique()) > 1:
                yield images, labels

    def _critic(self, model: nn.Module, batches: Batches | None) -> Information:
        """Return a critic that was trained on all images."""
        with torch.no_grad(), last_features(model) as features:
            seen = [(_all(features, images, labels), labels) for images, labels in self._blocks(model, batches)]
        if not seen:
            return normalised_hsic  # never asked: there is no block
        x, y = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return Critic(x, y, steps=self.steps, batch=self.block, seed=self.seed)


def _losses(
    information: Information, features: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, int]]:
    """Yield what to differentiate for part after part of a block, and of how many images it is.

    A part's is Σ ∂I/∂x·x over its features x, whose gradient is that of I: only one part's feature maps are kept.
    """
    parts = list(in_parts([(images, labels)]))
    if len(parts) == 1:
        yield information(features(images), labels), len(images)
        return
    with torch.no_grad():
        x = _all(features, images, labels)
    (slopes,) = torch.autograd.grad(information(x.requires_grad_(), labels), x)
    for (part, _), of_part in zip(parts, slopes.split(len(parts[0][0])), strict=True):
        yield (features(part) * of_part).sum(), len(part)


def _all(features: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([features(part) for part, _ in in_parts([(images, labels)])])


@contextmanager
def last_features(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that runs the network and returns what its last linear layer reads, or else its output.

    The features are float64 `[images, features]`. The hooks are gone afterwards.
    """
    read: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        read[:] = inputs[:1]

    def features(images: Tensor) -> Tensor:
        output = model(images)
        found = read.pop() if read else output
        if len(found) != len(images):
            raise RankingError(
                f"criterion 'cpgmi': expected features of each of {len(images)} images in front of the last linear "
                f"layer, got {len(found)}"
            )
        return found.flatten(1).double()

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def regrouped(batches: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same images in batches of `size`; the last may be smaller."""
    images, labels = [], []
    missing = size
    for pictures, of_pictures in batches:
        while len(pictures):
            images.append(pictures[:missing])
            labels.append(of_pictures[:missing])
            pictures, of_pictures = pictures[missing:], of_pictures[missing:]
            missing -= len(images[-1])
            if not missing:
                yield torch.cat(images), torch.cat(labels)
                images, labels, missing = [], [], size
    if images:
        yield torch.cat(images), torch.cat(labels)


def _normalised(score: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(score)
    return torch.where(norm == 0, score, score / norm)
