"""The second-order terms of a loss in the network's outputs: what is differentiated, and how it is weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.auxiliary import check_labels
from pruning.errors import OptionError, suggest


@dataclass(frozen=True)
class Part:
    """One backward pass: with tₓ the slope of image x's term, u gains Σ a·tₓ and S gains Σ b·tₓtₓᵀ.

    Attributes:
        total: the terms of all images, summed.
        linear: a, float64 `[images]`.
        quadratic: b ≥ 0, float64 `[images]`.
    """

    total: Tensor
    linear: Tensor
    quadratic: Tensor


Curvature = Callable[[Tensor, Tensor], list[Part]]
"""From logits `[images, classes]` and labels `[images]` the parts of JᵀHJ and of the gradient.

Raises DataError where a label has no class.
"""


def curvature_of(hessian: str, label_smoothing: float) -> Curvature:
    """Return the curvature of a loss.

    Raises:
        OptionError: an unknown loss, or a smoothing that leaves no label.
    """
    if hessian not in _CURVATURES:
        raise OptionError(f"hessian: unknown loss '{hessian}'{suggest(hessian, _CURVATURES)}")
    if not 0 <= label_smoothing < 1:
        raise OptionError(f"label_smoothing: expected 0 to less than 1, got {label_smoothing}")
    return partial(_CURVATURES[hessian], label_smoothing=label_smoothing)


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> list[Part]:
    check_labels(labels, logits.shape[1])
    if label_smoothing == 0:
        ones = torch.ones(len(labels), dtype=torch.float64, device=logits.device)
        return [Part(F.cross_entropy(logits, labels, reduction="sum"), ones, ones)]
    terms = -torch.log_softmax(logits, dim=1)
    soft = _soft(labels, logits.shape[1], label_smoothing)
    return [Part(term.sum(), y, y) for term, y in zip(terms.unbind(dim=1), soft.unbind(dim=1), strict=True)]


def _least_squares(logits: Tensor, labels: Tensor, label_smoothing: float) -> list[Part]:
    check_labels(labels, logits.shape[1])
    excess = logits.detach().double() - _soft(labels, logits.shape[1], label_smoothing)
    ones = torch.ones(len(labels), dtype=torch.float64, device=logits.device)
    return [Part(f.sum(), e, ones) for f, e in zip(logits.unbind(dim=1), excess.unbind(dim=1), strict=True)]


def _soft(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    return (1 - smoothing) * F.one_hot(labels, classes).double() + smoothing / classes


_CURVATURES: dict[str, Callable[..., list[Part]]] = {"cross_entropy": _cross_entropy, "least_squares": _least_squares}
