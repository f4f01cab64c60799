"""CCP: channels are removed together, so the loss of a cut is more than the sum of its channels' losses."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import QuadraticRanking
from pruning.statistics import reader_gates


@register("ccp")
class CCP:
    """The set of channels whose removal changes the loss least, to second order: min ½·zᵀSz − uᵀz, zᵢ = 1 removes i.

    With tₓ the slope of image x's cross-entropy in gates z = 1 on the channels where they are read, u = mean tₓ and
    S = mean tₓtₓᵀ: for one-hot labels this is JᵀΣJ with Σ = diag(y/f²), the paper's approximation of the Hessian. Both
    come for all groups from one backward pass a batch; a group takes channels² of memory, however many images there
    are. An image that is classified with certainty adds nearly nothing, so many are needed.

    Paper: Peng et al., Collaborative Channel Pruning for Deep Networks, ICML 2019.
    Differs: all groups are ranked once, on the network before any cut; the auxiliary classifiers of CCP-AC are left
    out; a group that several layers read, as residual sums have, is cut for all of them at once.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
    """

    name: ClassVar[str] = "ccp"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = True

    def __init__(self, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'ccp', images: expected at least 1, got {images}")
        self.images = images

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002
    ) -> QuadraticRanking:
        """Add up u and S of every group; see `Criterion.rank`."""
        linear = {name: torch.zeros(width, dtype=torch.float64) for name, width in groups.widths.items()}
        quadratic = {name: torch.zeros(width, width, dtype=torch.float64) for name, width in groups.widths.items()}
        seen = 0
        with evaluating(model), torch.enable_grad(), reader_gates(model, groups, self.name) as gates:
            for images, labels in calibration(batches, self.name, model, self.images):
                loss = F.cross_entropy(model(images), labels, reduction="sum")
                for name, slopes in gates.slopes(loss, len(images)).items():
                    linear[name] += slopes.sum(dim=0)
                    quadratic[name].addmm_(slopes.T, slopes)
                seen += len(images)
        return QuadraticRanking(
            self.name,
            {name: total / seen for name, total in linear.items()},
            {name: (total + total.T) / (2 * seen) for name, total in quadratic.items()},
        )
