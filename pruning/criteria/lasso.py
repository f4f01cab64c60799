"""LASSO channel pruning: the fewest channels from which a layer can still make its output, and its weights to do so."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.reconstruction import Place, Sample, blocks_of, check_readers, contract, inner_products, lasso_order
from pruning.refitting import ReconstructionRanking
from pruning.streaming import Reading

FLOAT64_COLUMNS = 2304
"""PᵀP of more columns than this is kept in float32."""


@register("lasso")
class Lasso(StreamingCriterion):
    """The support of a lasso on the channels' contributions to the next layer's output; then least squares.

    A filter's output without its bias is a sum of contributions of its input channels, `y = Σ_j z_j`. Kept is the
    support of `min ½·‖y − Z·β‖² + α·|β|₁` for the largest penalty α that leaves as many channels as are asked for. Then
    the weights W of the layer are solved for anew on the kept channels' inputs P_K: `min ‖P·Wᵀ − P_K·W'ᵀ‖²`. All of it
    comes from PᵀP, exactly: `ZᵀZ` is the sum over the blocks of `(PᵀP) ∘ (WᵀW)`, `Zᵀy` its row sums, and one path of
    least angle regression has the support of every α. Z, which has a row for every filter and place, is never made.

    PᵀP takes (channels·kernel)² numbers a reader, in float64 up to 2,304 columns and in float32 above; for all groups
    of ResNet-50 this is 0.73 GB in all.

    Paper: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017.
    Differs: all layers from the intact network at once, where the paper goes layer by layer and takes each layer's
    inputs from the network that was cut so far; residual sums take part like other groups, without the paper's
    correction for the shortcut. The number of channels is met exactly, by the path; the authors search α until it is
    within a tenth above. β has no part in the weights, as the least squares would take it back. Both steps take all
    sampled rows and no intercept; the authors' code takes the lasso of a twentieth of them and fits an intercept.
    Places are drawn by the image's pixels and the seed, with replacement, and a layer with no more places than points
    is seen whole. A group that several layers read has one β, by the sum of their mean squared errors a place. A ridge
    holds the weights at their values where the data do not say.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
        points_per_image: how many places of every image; None takes all.
        reconstruct: solve for the kept channels' weights; else they stay as they are, and PᵀP is not kept.
        ridge: the price of changing weights, relative to the mean square of the layer's inputs.
        seed: of the places.
    """

    name: ClassVar[str] = "lasso"

    def __init__(
        self,
        images: int | None = None,
        points_per_image: int | None = 10,
        reconstruct: bool = True,
        ridge: float = 1e-2,
        seed: int = 0,
    ) -> None:
        for option, value in (("images", images), ("points_per_image", points_per_image)):
            if value is not None and value < 1:
                raise OptionError(f"criterion 'lasso', {option}: expected at least 1, got {value}")
        if not ridge >= 0:
            raise OptionError(f"criterion 'lasso', ridge: expected 0 or more, got {ridge}")
        if seed < 0:
            raise OptionError(f"criterion 'lasso', seed: expected 0 or more, got {seed}")
        self.images, self.points_per_image, self.reconstruct = images, points_per_image, reconstruct
        self.ridge, self.seed = ridge, seed

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> _Inputs:
        """See `StreamingCriterion.watcher`.

        Raises:
            RankingError: a reader whose output is not a plain sum over channels.
        """
        check_readers(model, groups, self.name)
        return _Inputs(self, model, groups)


class _Inputs:
    """PᵀP of every reader, `[channels·inputs of one channel, same]`."""

    def __init__(self, criterion: Lasso, model: nn.Module, groups: ChannelGroups) -> None:
        self.criterion, self.groups, self.weights = criterion, groups, blocks_of(model, groups)
        self.sample = Sample(criterion.points_per_image, criterion.seed)
        self.grams: dict[Place, Tensor] = {}
        self.rows: dict[Place, int] = defaultdict(int)

    def see(self, reading: Reading) -> None:
        place = (reading.group.name, reading.part.tensor)
        columns = self.weights[place][0].numel()
        if place not in self.grams:
            dtype = torch.float64 if columns <= FLOAT64_COLUMNS else torch.float32
            self.grams[place] = torch.zeros(columns, columns, dtype=dtype, device=reading.inputs.device)
        gram = self.grams[place]
        for rows, _ in self.sample.rows(reading):
            P = rows.flatten(1).to(gram.dtype)
            if columns <= FLOAT64_COLUMNS:
                gram += inner_products(P)
            else:
                gram.addmm_(P.T, P)  # in place: a linear layer's may have gigabytes
            self.rows[place] += len(P)

    def ranking(self) -> ReconstructionRanking:
        means: dict[str, dict[str, Tensor]] = {name: {} for name in self.groups}
        sums = {name: torch.zeros(group.width, group.width).double() for name, group in self.groups.items()}
        for place in list(self.grams):
            name, tensor = place
            gram = self.grams.pop(place).div_(self.rows[place])
            sums[name] += contract(gram, self.weights[place]).cpu()
            if self.criterion.reconstruct:
                means[name][tensor] = gram.cpu()
        scores = NestedRanking.from_scores(self.criterion.name, {name: Q.diagonal() for name, Q in sums.items()}).scores
        return ReconstructionRanking(
            self.criterion.name,
            {name: lasso_order(gram, gram.sum(dim=1)) for name, gram in sums.items()},
            scores,
            means,
            whole_channels=False,
            ridge=self.criterion.ridge,
        )
