"""What training minimises: the labels' loss over all heads, and the distance from a teacher's soft labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pruning.errors import OptionError

Loss = Callable[[Any, Tensor], Tensor]
"""(what the network returns in train mode, labels `[images]`) → scalar."""

AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}
"""Weight of each auxiliary head's loss, by the name of the tuple that torchvision's networks return in train mode."""


class CrossEntropy:
    """Cross-entropy in float32; auxiliary heads of torchvision's networks add theirs, weighted.

    Papers: Szegedy et al., Going Deeper with Convolutions, CVPR 2015, §5; Rethinking the Inception Architecture for
    Computer Vision, CVPR 2016, §7 (label smoothing).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        """Return the mean over the images.

        Raises:
            OptionError: outputs that are neither logits `[images, classes]` nor a tuple of a known network.
        """
        if isinstance(outputs, Tensor):
            return self._of(outputs, labels)
        name = type(outputs).__name__
        if name not in AUXILIARY_WEIGHTS:
            raise OptionError(f"loss: expected logits, got {name}; pass a loss of your own for such a network")
        logits, *heads = (head for head in outputs if head is not None)
        return self._of(logits, labels) + AUXILIARY_WEIGHTS[name] * sum(self._of(head, labels) for head in heads)

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


def distance_from_teacher(outputs: Any, taught: Any, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened predictions, mean over the images.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, NIPS workshop 2014, §2.

    Args:
        outputs: of the network that learns.
        taught: of the teacher, on the same images.
        temperature: divides the logits of both.
    """
    student = F.log_softmax(main_logits(outputs).float() / temperature, dim=1)
    teacher = F.log_softmax(main_logits(taught).float() / temperature, dim=1)
    # T² keeps the size of the gradient independent of T.
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def main_logits(outputs: Any) -> Tensor:
    """Return the last layer's output `[images, classes]`; where there are auxiliary heads it comes first."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return logits
