"""Taylor: how much the loss would change, to first order, if nobody could read the channel any more."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from pruning.auxiliary import AuxiliaryLosses, check_labels
from pruning.criteria import Batches, calibration, evaluating, in_parts, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.statistics import reader_gates


@register("taylor")
class Taylor:
    """Mean over the images of (∂L/∂z)², where the gate z = 1 multiplies a channel wherever it is read.

    The gate's gradient is `Σ x·∂L/∂x` over the places where the channel's map x is read, which is also `Σ w·∂L/∂w` over
    the weights that read it. Closing the gate is what a cut does, so this is the first-order loss of the cut itself.

    Paper: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (equations 8 and 10).
    Differs: the gate stands where the channel is read, the paper's behind the batch norm; they agree for
    convolution, batch norm, ReLU or pooling, convolution (a ReLU lets a positive factor through), and only this one is
    defined for residual sums, depthwise convolutions and networks without batch norm. The square is taken for each
    image, the paper's for each minibatch: a score does not depend on the batch size. One pass over trained weights, the
    paper averages over updates while it fine-tunes.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
    """

    name: ClassVar[str] = "taylor"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = False

    def __init__(self, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'taylor', images: expected at least 1, got {images}")
        self.images = images

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002
    ) -> NestedRanking:
        """Order every group by its scores; see `Criterion.rank`.

        Raises:
            DataError: a label that the network has no class for.
        """
        scores = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in groups.items()}
        seen = 0
        with evaluating(model), torch.enable_grad(), reader_gates(model, groups, self.name) as gates:
            for images, labels in in_parts(calibration(batches, self.name, model, self.images)):
                logits = model(images)
                check_labels(labels, logits.shape[1])
                loss = F.cross_entropy(logits, labels, reduction="sum")
                for name, slopes in gates.slopes(loss, len(images)).items():
                    scores[name] += slopes.square().sum(dim=0)
                seen += len(images)
        return NestedRanking.from_scores(self.name, {name: score / seen for name, score in scores.items()})
