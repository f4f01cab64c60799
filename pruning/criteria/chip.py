"""CHIP: a channel whose map the other channels' maps can stand in for says little."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.map_scores import MapScores
from pruning.spectra import nuclear_drops


@register("chip")
class CHIP(StreamingCriterion):
    """Channel independence: by how much the nuclear norm of an image's maps drops without the channel, over images.

    With A the maps of an image, one row a channel, it is ‖A‖_* − ‖A with row j zeroed‖_*. One eigendecomposition an
    image gives it for all channels, see `nuclear_drops`; the definition takes channels + 1 SVDs.

    Paper: Sui et al., CHIP: CHannel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021.
    Differs: the maps are not rounded, unless `round_decimals` says so; the authors' code rounds to 4 decimals. The rows
    are the channels of one group, the authors' those of a layer; they differ where a shortcut ties some of the layer's
    channels only. The maps are taken where the channels are read, behind a pool if there is one; of channels that are
    read in several places, as block outputs are, the averages are summed, where the authors rank each layer's filters
    by themselves.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all. The authors' code looks at
            five batches of 128.
        round_decimals: how many decimals of the maps to keep, 0 to 15; None keeps all.
    """

    name: ClassVar[str] = "chip"

    def __init__(self, images: int | None = 640, round_decimals: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'chip', images: expected at least 1, got {images}")
        if round_decimals is not None and not 0 <= round_decimals <= 15:
            raise OptionError(f"criterion 'chip', round_decimals: expected 0 to 15, got {round_decimals}")
        self.images = images
        self.round_decimals = round_decimals

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> MapScores:  # noqa: ARG002
        """See `StreamingCriterion.watcher`."""
        return MapScores(self.name, groups, self._independence)

    def _independence(self, maps: Tensor) -> Tensor:
        if self.round_decimals is not None:
            exact = maps if maps.dtype.itemsize >= 4 else maps.double()  # half precision has too few digits
            maps = exact.round(decimals=self.round_decimals)
        return nuclear_drops(maps)
