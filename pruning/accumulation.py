"""Losses and gradients of a batch that memory does not hold at once: the sums over its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add

from torch import Tensor, nn

from pruning.memory import Portions, parts_of

Gradients = tuple[Tensor | None, ...]
"""None where a loss does not depend on a parameter."""

Found = tuple[tuple[Tensor, ...], Gradients]
"""Losses and gradients; no gradients where they were added to those in place."""

Work = Callable[[Tensor, Tensor, float], Found]
"""(images, labels, their share of the batch) → losses, each a mean, and gradients; both times the share."""


class Accumulation:
    """Runs batches at once, or in parts where memory does not hold them; what fits is kept for the next batches.

    A part's share of the batch weighs its means, so their sums are the batch's means. But batch norm in train mode
    normalises by the part, and its running statistics move once a part.

    Args:
        networks: all that is trained.
        forget: lets go of what else holds tensors of an attempt that failed.
    """

    def __init__(self, networks: nn.Module, forget: Callable[[], None]) -> None:
        self._networks, self._forget = networks, forget
        self._portions = Portions("training")

    def __call__(self, images: Tensor, labels: Tensor, work: Work) -> Found:
        """Return losses and gradients of a batch.

        An attempt that ran out of memory leaves no gradients; nor a trace in running statistics, unless the batch
        before it did fit.

        Raises:
            DeviceMemoryError: memory does not hold one image.
        """
        # Copies are for the moment when it is not known yet what fits: later batches take as much memory as the first.
        before = [] if self._portions.proven else [(buffer, buffer.clone()) for buffer in self._networks.buffers()]
        return self._portions.run(
            len(images), lambda size: _summed(images, labels, size, work), partial(self._undo, before)
        )

    def _undo(self, before: Sequence[tuple[Tensor, Tensor]]) -> None:
        for parameter in self._networks.parameters():
            if parameter.requires_grad:
                parameter.grad = None
        for buffer, value in before:
            buffer.copy_(value)
        self._forget()


def weighted(loss: Tensor, share: float) -> Tensor:
    """Return a part's loss by its share of the batch."""
    return loss if share == 1 else share * loss


def _summed(images: Tensor, labels: Tensor, size: int, work: Work) -> Found:
    if len(images) <= size:
        return work(images, labels, 1.0)
    parts = zip(parts_of(images, size), parts_of(labels, size), strict=True)
    return reduce(_plus, (work(part, its_labels, len(part) / len(images)) for part, its_labels in parts))


def _plus(one: Found, other: Found) -> Found:
    # Not in place: two parameters may have been given the same tensor for their gradients.
    gradients = (b if a is None else a if b is None else a + b for a, b in zip(one[1], other[1], strict=True))
    return tuple(map(add, one[0], other[0])), tuple(gradients)
