"""DLRFC: a channel that answers to images of few classes tells classes apart."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.streaming import Reading

RESPONSES = ("l2", "max")


@register("dlrfc")
class DLRFC(StreamingCriterion):
    """Minus the entropy, in bits, of the labels of the images that the channel responds to most.

    Paper: He et al., Filter Pruning via Feature Discrimination in Deep Neural Networks, ECCV 2022; after the authors'
    code: the paper's text was not to be had.
    Differs: ranks within a group, the authors also choose the layers by what a cut does to the outputs, in rounds with
    training between them. The map is taken where the channel is read, theirs of a block's output before the addition; a
    coupled channel's entropies are added up over the distinct maps that are read, theirs over the convolutions that
    make it. Of images with equal responses each counts in part where not all belong to the top, theirs as they are
    sorted: the images that a channel is silent on are alike. A channel that is zero on all images has one bit more than
    the entropy of equally many images of every class, so it is last.

    Memory is that of `top` responses a channel, however many images there are.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
        top: how many of them count for a channel, at most.
        share: at most this share of the images that were seen counts, to half of them: the more count, the nearer every
            channel comes to the entropy of all images. The default is the authors', 640 of 12,800.
        response: what an image's response is: the `l2` norm of the map, or the `max` of its absolute values.
    """

    name: ClassVar[str] = "dlrfc"

    def __init__(self, images: int | None = 12_800, top: int = 640, share: float = 0.05, response: str = "l2") -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'dlrfc', images: expected at least 1, got {images}")
        if top < 1:
            raise OptionError(f"criterion 'dlrfc', top: expected at least 1, got {top}")
        if not 0 < share <= 0.5:
            raise OptionError(f"criterion 'dlrfc', share: expected more than 0 to 0.5, got {share}")
        if response not in RESPONSES:
            raise OptionError(f"criterion 'dlrfc', response: expected {' or '.join(RESPONSES)}, got '{response}'")
        self.images, self.top, self.share, self.response = images, top, share, response

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> _Responses:  # noqa: ARG002
        """See `StreamingCriterion.watcher`."""
        return _Responses(groups, self.top, Fraction(str(self.share)), math.inf if self.response == "max" else 2)


class _Responses:
    def __init__(self, groups: ChannelGroups, top: int, share: Fraction, order: float) -> None:
        self.groups, self.top, self.share, self.order = groups, top, share, order
        self.tops: dict[str, dict[str, _Top]] = {name: {} for name in groups}

    def see(self, reading: Reading) -> None:
        if reading.repeated:
            return
        norms = torch.linalg.vector_norm(reading.maps, self.order, dim=(2, 3), dtype=torch.float64)
        tops, reader = self.tops[reading.group.name], reading.part.tensor
        if reader not in tops:
            tops[reader] = _Top(self.top, norms.shape[1], norms.device)
        tops[reader].add(norms.T, reading.labels)

    def ranking(self) -> NestedRanking:
        scores = {}
        for name, group in self.groups.items():
            entropy = torch.zeros(group.width, dtype=torch.float64)  # of a group that nobody reads
            for top in self.tops[name].values():
                entropy += top.entropy(self.share).cpu()
            scores[name] = -entropy
        return NestedRanking.from_scores(DLRFC.name, scores)


class _Top:
    """The largest responses of each channel with their labels, and the labels of what ties with the smallest of them.

    Args:
        most: how many responses to keep.
        channels: of how many channels.
        device: where.
    """

    def __init__(self, most: int, channels: int, device: torch.device) -> None:
        self.most, self.images, self.classes = most, 0, set[int]()
        self.values = torch.zeros(channels, 0, dtype=torch.float64, device=device)  # [channels, kept], falling
        self.labels = torch.zeros(channels, 0, dtype=torch.int64, device=device)
        self.lost = torch.zeros(channels, 0, dtype=torch.float64, device=device)  # [channels, classes]

    def add(self, responses: Tensor, labels: Tensor) -> None:
        """Merge the responses of some more images, `[channels, images]`, with their labels, `[images]`."""
        owners = torch.cat([self.labels, labels.expand_as(responses)], dim=1)
        responses = torch.cat([self.values, responses], dim=1)
        self.images += len(labels)
        self.classes |= set(labels.tolist())
        kept, places = responses.topk(min(self.most, responses.shape[1]), dim=1)  # the largest first
        smallest, labels = kept[:, -1:], owners.gather(1, places)
        lost = self._count(owners, responses == smallest) - self._count(labels, kept == smallest)
        older = F.pad(self.lost, (0, lost.shape[1] - self.lost.shape[1]))
        lost += older * (self.values[:, -1:] == smallest).any(dim=1, keepdim=True)
        self.values, self.labels, self.lost = kept, labels, lost

    def entropy(self, share: Fraction) -> Tensor:
        """Return the entropy of the labels behind each channel's largest responses, in bits, float64 `[channels]`.

        Args:
            share: of all images, how many count at most; one always does.

        Raises:
            RankingError: all images are of one class.
        """
        if len(self.classes) < 2:
            raise RankingError(
                f"criterion 'dlrfc': expected images of at least two classes, got only class {min(self.classes)}"
            )
        places = min(self.most, max(1, math.floor(share * self.images)))
        last, smallest = self.values[:, places - 1 : places], self.values[:, -1:]
        above = self._count(self.labels, self.values > last)
        tied = self._count(self.labels, self.values == last) + self.lost * (last == smallest)
        counts = above + tied * ((places - above.sum(dim=1)) / tied.sum(dim=1))[:, None]
        shares = (counts / places).sort(dim=1).values  # equal shares add up to the same, whoever has them
        entropy: Tensor = torch.special.entr(shares).cumsum(dim=1)[:, -1] / math.log(2)
        entropy[self.values[:, 0] == 0] = math.log2(len(self.classes)) + 1
        entropy[~self.values.isfinite().all(dim=1)] = torch.nan
        return entropy

    def _count(self, labels: Tensor, chosen: Tensor) -> Tensor:
        """Return how many of the chosen are of each class, float64 `[channels, classes]`."""
        counts = torch.zeros(len(labels), 1 + max(self.classes), dtype=torch.float64, device=labels.device)
        return counts.scatter_add_(1, labels, chosen.double())
