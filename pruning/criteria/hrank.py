"""HRank: a map of low rank says little."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.map_scores import MapScores
from pruning.spectra import ranks


@register("hrank")
class HRank(StreamingCriterion):
    """Average rank of the channel's map, over images.

    The rank is `torch.linalg.matrix_rank`'s, whose tolerance is relative to each map's own largest singular value.

    Paper: Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020.
    Differs: all layers are ranked on the given network, in one pass; the authors prune and fine-tune one layer after
    the other (their later code ranks as here). The map is taken where the channel is read, behind a pool if there is
    one; of a channel that is read in several places, as block outputs are, the maps' averages are summed, where the
    authors rank each layer's filters by themselves. Half precision has float32's tolerance.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all. The authors' code looks at
            five batches of 128.
    """

    name: ClassVar[str] = "hrank"

    def __init__(self, images: int | None = 640) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'hrank', images: expected at least 1, got {images}")
        self.images = images

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> MapScores:  # noqa: ARG002
        """See `StreamingCriterion.watcher`."""
        return MapScores(self.name, groups, ranks)
