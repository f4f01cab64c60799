"""CCP: channels are removed together, so the loss of a cut is more than the sum of its channels' losses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from math import floor
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, in_parts, register
from pruning.curvature import Part, curvature_of
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.modes import in_mode
from pruning.precision import uses_channels_last
from pruning.ranking import QuadraticRanking
from pruning.statistics import closed_gates, reader_gates


@register("ccp")
class CCP:
    """The set of channels whose removal changes the loss least, to second order: min ½·zᵀSz − uᵀz, zᵢ = 1 removes i.

    With tₓ the slope of image x's cross-entropy in gates z = 1 on the channels where they are read, u = mean tₓ and
    S = mean tₓtₓᵀ: for one-hot labels this is JᵀΣJ with Σ = diag(y/f²) and f the softmax outputs, the paper's
    approximation of the Hessian. Both come for all groups from one backward pass a batch; a group takes channels² of
    memory, however many images there are. An image that is classified with certainty adds nearly nothing, so many are
    needed.

    With smoothed labels y the same Σ gives S = mean Σₖ yₖ·(∂log fₖ)(∂log fₖ)ᵀ, a backward pass for each class. For
    `least_squares` the loss is ½‖f − y‖² with f the network's outputs as they are, before any softmax, and
    S = mean Σₖ (∂fₖ)(∂fₖ)ᵀ, a backward pass for each class as well.

    With auxiliary heads this is CCP-AC: each head's loss, of the same kind and by the heads' weight, adds its own u and
    S for the layers in front of it, for one more backward pass (or one for each class).

    Paper: Peng et al., Collaborative Channel Pruning for Deep Networks, ICML 2019.
    Differs: a group that several layers read, as residual sums have, is cut for all of them at once. Which order of the
    layers the paper takes is not known. That auxiliary losses also choose the channels is taken from DCP.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
        hessian: the loss, `cross_entropy` or `least_squares`.
        label_smoothing: of the labels y, from 0 to less than 1.
        order: `one_shot` ranks every group on the network before any cut. `forward` ranks them in the order of the
            graph, each on the network whose earlier groups are masked as `rate` says: all images run once for each
            group, so it costs as many times as much as there are groups.
        rate: for `forward`, which share of each earlier group is gone: it keeps c − ⌊rate·c⌋ channels.
        joint: keep S between groups as well, for the allocation `joint_quadratic`: 8·(all channels)² bytes, which is
            8 MB for the 1,008 inner channels of ResNet-56.
    """

    name: ClassVar[str] = "ccp"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = True

    def __init__(
        self,
        images: int | None = None,
        hessian: str = "cross_entropy",
        label_smoothing: float = 0.0,
        order: str = "one_shot",
        rate: float | None = None,
        joint: bool = False,
    ) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'ccp', images: expected at least 1, got {images}")
        try:
            self._curvature = curvature_of(hessian, label_smoothing)
        except OptionError as error:
            raise OptionError(f"criterion 'ccp', {error}") from None
        _check_order(order, rate, joint=joint)
        self.images, self.order, self.rate, self.joint = images, order, rate, joint

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> QuadraticRanking:
        """Add up u and S of every group; see `Criterion.rank`.

        Raises:
            DataError: a label that the network, or a head, has no class for.
        """
        if self.rate is not None:
            return self._forward(model, groups, batches, auxiliary, Fraction(str(self.rate)))
        sums = self._add_up(model, groups, batches, auxiliary, {})
        return sums.ranking(self.name)

    def _forward(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None,
        auxiliary: AuxiliaryLosses | None,
        rate: Fraction,
    ) -> QuadraticRanking:
        if isinstance(batches, Iterator):  # it comes once, and is needed for each group
            batches = list(batches)
        linear: dict[str, Tensor] = {}
        quadratic: dict[str, Tensor] = {}
        removed: dict[str, set[int]] = {}
        for name, group in groups.items():
            found = self._add_up(model, groups, batches, auxiliary, removed, name).ranking(self.name)
            linear |= found.linear
            quadratic |= found.quadratic
            kept = found.keep(name, max(group.minimum, group.width - floor(rate * group.width)))
            removed[name] = set(range(group.width)).difference(kept)
        return QuadraticRanking(self.name, linear, quadratic)

    def _add_up(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None,
        auxiliary: AuxiliaryLosses | None,
        removed: Mapping[str, Collection[int]],
        only: str | None = None,
    ) -> _Sums:
        """Return the sums of all groups, or of one, over the images, on the network without the removed channels."""
        asked = groups if only is None else groups.only([only])
        sums = _Sums(asked.widths, joint=self.joint)
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(closed_gates(model, groups, removed))
            gates = stack.enter_context(reader_gates(model, asked, self.name))
            if auxiliary is not None:
                stack.enter_context(in_mode(auxiliary.heads, training=False))
                stack.enter_context(auxiliary.attached(model))
            for images, labels in in_parts(calibration(batches, self.name, model, self.images)):
                parts = self._parts(model(_laid_out(images)), labels, auxiliary)
                for number, (weight, part) in enumerate(parts, 1):
                    sums.add(gates.slopes(part.total, len(images), again=number < len(parts)), part, weight)
                sums.images += len(images)
        return sums

    def _parts(self, logits: Tensor, labels: Tensor, auxiliary: AuxiliaryLosses | None) -> list[tuple[float, Part]]:
        """Return the backward passes of all losses with the losses' weights."""
        weighted = [(1.0, logits)]
        if auxiliary is not None:
            weighted += [(auxiliary.placement.weight, head) for head in auxiliary.logits()]
        return [(weight, part) for weight, outputs in weighted for part in self._curvature(outputs, labels)]


class _Sums:
    """u and S of groups, added up over images; for all groups side by side where S between them is asked for."""

    def __init__(self, widths: Mapping[str, int], *, joint: bool) -> None:
        self.images = 0
        self._widths, self._joint = dict(widths), joint
        self._blocks = [list(widths)] if joint else [[name] for name in widths]
        sizes = [sum(widths[name] for name in block) for block in self._blocks]
        self._linear = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        self._quadratic = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]

    def add(self, slopes: Mapping[str, Tensor], part: Part, weight: float) -> None:
        a, b = (weight * factors.cpu()[:, None] for factors in (part.linear, part.quadratic))
        for block, linear, quadratic in zip(self._blocks, self._linear, self._quadratic, strict=True):
            t = torch.cat([slopes[name] for name in block], dim=1)  # [images, channels]
            linear += (a * t).sum(dim=0)
            quadratic.addmm_((b * t).T, t)

    def ranking(self, criterion: str) -> QuadraticRanking:
        linear = torch.cat(self._linear).split(list(self._widths.values())) if self._widths else ()
        of_groups = {name: u / self.images for name, u in zip(self._widths, linear, strict=True)}
        blocks = [(S + S.T) / (2 * self.images) for S in self._quadratic]
        if self._joint:
            return QuadraticRanking.from_joint(criterion, of_groups, blocks[0])
        return QuadraticRanking(criterion, of_groups, dict(zip(self._widths, blocks, strict=True)))


def _laid_out(images: Tensor) -> Tensor:
    """Return images in the layout in which the device is fast; convolutions pass it on."""
    if images.dim() != 4 or not uses_channels_last("auto", images.device, bfloat16=False):
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _check_order(order: str, rate: float | None, *, joint: bool) -> None:
    if order not in ("one_shot", "forward"):
        raise OptionError(f"criterion 'ccp', order: expected one_shot or forward, got '{order}'")
    if order == "one_shot" and rate is not None:
        raise OptionError(f"criterion 'ccp', rate: expected order forward, got one_shot with rate {rate}")
    if order == "forward" and (rate is None or not 0 <= rate < 1):
        raise OptionError(f"criterion 'ccp', rate: expected 0 to less than 1 for order forward, got {rate}")
    if order == "forward" and joint:
        raise OptionError("criterion 'ccp', joint: expected order one_shot, got forward, which sees many networks")
