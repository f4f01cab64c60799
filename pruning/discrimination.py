"""One group's problem in DCP: both losses as functions of the weights that read the group, and their gradients.

Only a part of the network runs: from the layers that read the group to the head that judges it. What that part needs
is cached, and so is what the uncut baseline puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.auxiliary import check_labels
from pruning.groups import ChannelGroup, Slice, tensor_of
from pruning.lineage import Segment, Values
from pruning.losses import main_logits

Data = Sequence[tuple[Tensor, Tensor]]
"""Images `[images, channels, height, width]` and labels `[images]`, in the type and place of the weights."""


@dataclass(frozen=True)
class Objective:
    """L = reconstruction · L_M + discrimination · L_S, eq. 6 of the paper, and how a step goes down it."""

    reconstruction: float
    discrimination: float
    learning_rate: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class Batch:
    """What one batch needs: the segment's boundary values, each reader's output in the baseline, the labels."""

    values: Values
    targets: Mapping[str, Tensor]
    labels: Tensor


class Inputs:
    """The batches as one group's segment needs them: kept where they fit, else made anew for each pass.

    Args:
        network: the segment of the network that is being cut.
        baseline: the same segment of the uncut one.
        data: the selection set.
        limit: bytes that the batches may take.
        before: the last group's inputs; what follows from them is not computed from the images again.
    """

    def __init__(
        self, network: Segment, baseline: Segment, data: Data, limit: float, before: Inputs | None = None
    ) -> None:
        self._network, self._baseline, self._data = network, baseline, data
        self._kept: list[tuple[Batch, Values]] | None = []
        held = 0
        for number in range(len(data)):
            batch, values = self._made(number, before)
            held += sum(_bytes(tensors) for tensors in (batch.values, batch.targets, values))
            if held > limit:
                self._kept = None
                return
            self._kept.append((batch, values))

    def __len__(self) -> int:
        return len(self._data)

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(len(labels) for _, labels in self._data)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._data)):
            yield self._made(number, None)[0] if self._kept is None else self._kept[number][0]

    def _made(self, number: int, before: Inputs | None) -> tuple[Batch, Values]:
        images, labels = self._data[number]
        known = before._kept[number] if before is not None and before._kept is not None else None
        values = self._network.prefix(images, known and known[0].values)
        # The baseline sees its own input: its earlier groups are whole.
        whole = self._baseline.prefix(images, known and known[1])
        with torch.no_grad():
            return Batch(values, self._baseline.outputs(whole), labels), whole


class Reader:
    """The weights of one layer that read a group: its slice along one axis, and the bias.

    Attributes:
        layer: the layer's name.
        axis: of the weight, the one that the slice lies on.
        index: the group's positions on that axis, channel by channel, int64 `[channels · positions of one channel]`.
        weight: the whole weight of the network.
        bias: of the layer, or None.
        original: what the slice was before, `index` along `axis`.
    """

    def __init__(self, network: nn.Module, part: Slice) -> None:
        weight, bias = tensor_of(network, part.tensor), getattr(network.get_submodule(part.layer), "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.layer, self.tensor, self.axis = part.layer, part.tensor, part.axis
        self.positions = torch.tensor(part.positions, device=weight.device)
        self.index = self.positions.flatten()
        self.weight: nn.Parameter = weight
        self.bias: nn.Parameter | None = bias
        self.original = weight.detach().index_select(part.axis, self.index)
        self.original_bias = None if bias is None else bias.detach().clone()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, and the bias where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def by_channel(self, tensor: Tensor) -> Tensor:
        """Return a tensor shaped like the weight as `[channels, outputs, entries]`, of the group's channels."""
        rows = tensor.index_select(self.axis, self.index).movedim(self.axis, 0)
        rows = rows.reshape(*self.positions.shape, *rows.shape[1:])  # [channels, positions, outputs, …]
        return rows.movedim(2, 1).flatten(2)

    def matrix(self, gradients: Mapping[int, Tensor]) -> Tensor:
        """Return the slice's gradient, and the bias's as a last column, `[outputs, …]`; by the parameters' ids."""
        slope = gradients[id(self.weight)].index_select(1, self.index).flatten(1)
        return slope if self.bias is None else torch.cat([slope, gradients[id(self.bias)][:, None]], dim=1)


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
                terms = self._terms(batch, maps)
                loss, images = loss + count * self._loss(*terms), images + count
                ends, starts = list(terms[1]), [d * (self.objective.reconstruction / d.numel()) for d in terms[1]]
                if terms[0] is not None:
                    ends += maps
                    of_maps = torch.autograd.grad(terms[0], maps)
                    starts += [self.objective.discrimination * slope for slope in of_maps]
                    for total, slope in zip(covariances, of_maps, strict=True):
                        total += count * _covariance(slope)
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
        moving = [_Moving(reader.weight, reader.axis, reader.positions[chosen].flatten()) for reader in self.readers]
        moving += [_Moving(reader.bias, 0, None) for reader in self.readers if reader.bias is not None]
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


class _Moving:
    """What a pass changes of one parameter, and how fast it moves."""

    def __init__(self, parameter: nn.Parameter, axis: int, index: Tensor | None) -> None:
        self.parameter, self._axis, self._index = parameter, axis, index
        self._speed: Tensor | None = None

    def step(self, gradient: Tensor, objective: Objective) -> None:
        value, slope = self._part(self.parameter.detach()), self._part(gradient)
        slope = slope + objective.weight_decay * value
        self._speed = slope if self._speed is None else objective.momentum * self._speed + slope
        ahead = slope + objective.momentum * self._speed
        value = value - objective.learning_rate * ahead
        if self._index is None:
            self.parameter.copy_(value)
        else:
            self.parameter.index_copy_(self._axis, self._index, value)

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor if self._index is None else tensor.index_select(self._axis, self._index)


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
    """Return P · mean ggᵀ over images and positions, from the slopes of the batch's mean loss `[images, outputs, …]`."""
    rows = slopes.movedim(1, 0).flatten(1)
    return rows @ rows.T * len(slopes)  # g = images · slope; P · mean = Σ / images


def _bytes(values: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))


def channel_norms(slopes: Sequence[Tensor], norm: str) -> Tensor:
    """Return one number a channel from its gradients `[channels, outputs, entries]` in every layer, float64.

    Args:
        slopes: one a layer.
        norm: `frobenius`, or `code`: the sum over the outputs of the norms of the kernels.
    """
    if norm == "code":
        return torch.stack([slope.norm(dim=2).sum(dim=1) for slope in slopes]).sum(dim=0).cpu()
    return torch.stack([slope.square().sum(dim=(1, 2)) for slope in slopes]).sum(dim=0).sqrt().cpu()
