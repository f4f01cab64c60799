"""One group's problem in DCP: both losses as functions of the weights that read the group, and their gradients.

Only a part of the network runs: from the layers that read the group to the head that judges it. What that part needs
is cached, and so is what the uncut baseline puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.auxiliary import check_labels
from pruning.discrimination.reading import Moving, Objective, Reader
from pruning.discrimination.selection_data import Batch, Inputs
from pruning.groups import ChannelGroup
from pruning.lineage import Segment
from pruning.losses import main_logits
from pruning.precision import uses_bfloat16


class GroupProblem:
    """The losses of one group as functions of its readers' weights, which start at zero; biases as they are.

    Args:
        network: frozen, in eval mode; the readers' weights change in place.
        group: the group.
        layers: the readers' layers that run.
        segment: of `network`, from these layers to the end.
        inputs: the batches.
        head: from what the segment puts out to logits; None for the network's own output.
        objective: the weights of the losses, and of a step.
    """

    def __init__(
        self,
        network: nn.Module,
        group: ChannelGroup,
        segment: Segment,
        inputs: Inputs,
        head: Callable[[Any], Tensor] | None,
        objective: Objective,
    ) -> None:
        self.readers = [Reader(network, part) for part in group.readers if part.layer in segment.layers]
        self.width, self.inputs, self.objective = group.width, inputs, objective
        self.input_names = segment.inputs
        weight = self.readers[0].weight
        self._bfloat16 = weight.dtype == torch.float32 and uses_bfloat16("auto", network, weight.device)
        self._segment, self._head = segment, head or main_logits
        with torch.no_grad():
            for reader in self.readers:
                reader.weight.index_fill_(reader.axis, reader.index, 0)

    def loss(self) -> float:
        """Return L over the selection set."""
        with torch.no_grad():
            return sum(self._loss(*self._terms(batch)) * self._share(batch) for batch in self.inputs)

    def slopes(self) -> tuple[float, list[Tensor]]:
        """Return L and for each reader its gradient, float64 `[channels, outputs, entries]`."""
        loss, slopes = 0.0, [torch.zeros((), dtype=torch.float64)] * len(self.readers)
        with _open([reader.weight for reader in self.readers]) as weights:
            for batch in self.inputs:
                terms = self._terms(batch)
                gradients = self._gradients(*terms, weights)
                loss += self._loss(*terms) * self._share(batch)
                slopes = [
                    total + self._share(batch) * reader.by_channel(gradient).double()
                    for total, reader, gradient in zip(slopes, self.readers, gradients, strict=True)
                ]
        return loss, slopes

    def slopes_with_covariance(self, share: int, first: int) -> tuple[float, list[Tensor], list[Tensor]]:
        """Return L, and for each reader its gradient and P · mean ggᵀ, g the slope of an image's L_S in an output.

        In bfloat16 where that is faster: the slopes come from sums over many positions, so its rounding averages out.
        For readers side by side. Gradients are matrices `[outputs, channels · entries (+ 1 for the bias)]`.

        Args:
            share: look at every so manieth batch only.
            first: the batch to begin with.
        """
        loss, images = 0.0, 0
        slopes = [reader.weight.new_zeros(()) for reader in self.readers]
        outputs = [reader.weight.shape[1 - reader.axis] for reader in self.readers]
        covariances = [
            reader.weight.new_zeros(count, count) for reader, count in zip(self.readers, outputs, strict=True)
        ]
        with _open([parameter for reader in self.readers for parameter in reader.parameters]) as parameters:
            for number, batch in enumerate(self.inputs):
                if number % share != first % min(share, len(self.inputs)):
                    continue
                count, maps = len(batch.labels), list[Tensor]()
                with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=self._bfloat16):
                    terms = self._terms(batch, maps)
                loss, images = loss + count * self._loss(*terms), images + count
                ends, starts = list(terms[1]), [d * (self.objective.reconstruction / d.numel()) for d in terms[1]]
                if terms[0] is not None:
                    ends += maps
                    of_maps = torch.autograd.grad(terms[0], maps)
                    starts += [self.objective.discrimination * slope for slope in of_maps]
                    for total, slope in zip(covariances, of_maps, strict=True):
                        total += count * _covariance(slope.to(total))
                found = torch.autograd.grad(ends, parameters, [start.detach() for start in starts])
                gradients = dict(zip(map(id, parameters), found, strict=True))
                slopes = [
                    total + count * reader.matrix(gradients) for total, reader in zip(slopes, self.readers, strict=True)
                ]
        return loss / images, [slope / images for slope in slopes], [total / images for total in covariances]

    def add(self, channel: int) -> None:
        """Give a channel the weights that it had."""
        with torch.no_grad():
            for reader in self.readers:
                slots = torch.arange(len(reader.index), device=reader.index.device).view_as(reader.positions)[channel]
                original = reader.original.index_select(reader.axis, slots)
                reader.weight.index_copy_(reader.axis, reader.positions[channel], original)

    def descend(self, channels: Sequence[int]) -> None:
        """Make one pass of stochastic gradient descent over the selection set, on these channels' weights and biases.

        Nesterov's momentum as in torch, from a standstill; weight decay on all that moves.
        """
        chosen = torch.tensor(channels, device=self.readers[0].index.device)
        moving = [Moving(reader.weight, reader.axis, reader.positions[chosen].flatten()) for reader in self.readers]
        moving += [Moving(reader.bias, 0, None) for reader in self.readers if reader.bias is not None]
        with _open([part.parameter for part in moving]) as parameters:
            for batch in self.inputs:
                gradients = self._gradients(*self._terms(batch), parameters)
                with torch.no_grad():
                    for part, gradient in zip(moving, gradients, strict=True):
                        part.step(gradient, self.objective)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the readers' slices and biases, by qualified name."""
        found = {}
        for reader in self.readers:
            found[reader.tensor] = reader.weight.detach().index_select(reader.axis, reader.index)
            if reader.bias is not None:
                found[f"{reader.layer}.bias"] = reader.bias.detach().clone()
        return found

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Give the readers weights that `weights` returned."""
        with torch.no_grad():
            for reader in self.readers:
                reader.weight.index_copy_(reader.axis, reader.index, weights[reader.tensor])
                if reader.bias is not None:
                    reader.bias.copy_(weights[f"{reader.layer}.bias"])

    def _share(self, batch: Batch) -> float:
        return len(batch.labels) / self.inputs.images

    def _terms(self, batch: Batch, outputs: list[Tensor] | None = None) -> tuple[Tensor | None, list[Tensor]]:
        """Return L_S of a batch, if it counts, and O − O^b of every reader, if they count."""
        differences: list[Tensor] = []

        def compare(layer: str, output: Tensor) -> None:
            if self.objective.reconstruction:
                differences.append(output - batch.targets[layer])
            if outputs is not None:
                outputs.append(output)

        if not self.objective.discrimination:
            for layer, output in self._segment.outputs(batch.values).items():
                compare(layer, output)
            return None, differences
        end = self._segment.suffix(batch.values, compare)
        logits = self._head(end)
        check_labels(batch.labels, logits.shape[1])
        return F.cross_entropy(logits, batch.labels), differences

    def _loss(self, discrimination: Tensor | None, differences: list[Tensor]) -> float:
        """Return eq. 6; L_M is half a mean square, eq. 3."""
        loss = sum(self.objective.reconstruction / 2 * float(d.detach().square().mean()) for d in differences)
        return loss + (
            0.0 if discrimination is None else self.objective.discrimination * float(discrimination.detach())
        )

    def _gradients(
        self, discrimination: Tensor | None, differences: list[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the gradient of a batch's loss. That of L_M starts at O: it needs no graph of its own."""
        ends = list(differences)
        starts = [d.detach() * (self.objective.reconstruction / d.numel()) for d in differences]
        if discrimination is not None:
            ends.append(discrimination)
            starts.append(torch.full_like(discrimination, self.objective.discrimination))
        return torch.autograd.grad(ends, parameters, starts, materialize_grads=True)


@contextmanager
def _open(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Let gradients reach parameters of a frozen network for a while."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _covariance(slopes: Tensor) -> Tensor:
    """Return P · mean ggᵀ over images and positions from the slopes of a batch's mean loss, `[images, outputs, …]`."""
    rows = slopes.movedim(1, 0).flatten(1)
    return rows @ rows.T * len(slopes)  # g = images · slope; P · mean = Σ / images


def channel_norms(slopes: Sequence[Tensor], norm: str) -> Tensor:
    """Return one number a channel from its gradients `[channels, outputs, entries]` in every layer, float64.

    Args:
        slopes: one a layer.
        norm: `frobenius`, or `code`: the sum over the outputs of the norms of the kernels.
    """
    if norm == "code":
        return torch.stack([slope.norm(dim=2).sum(dim=1) for slope in slopes]).sum(dim=0).cpu()
    return torch.stack([slope.square().sum(dim=(1, 2)) for slope in slopes]).sum(dim=0).sqrt().cpu()
