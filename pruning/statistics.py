"""What the criteria add up over images: how the loss of each image moves with a gate where a channel is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups


@contextmanager
def reader_gates(model: nn.Module, groups: ChannelGroups, criterion: str) -> Iterator[ReaderGates]:
    """Multiply every channel of `groups` by a gate z = 1 wherever it is read; the hooks are gone afterwards.

    Closing a gate is what a cut does. A shortcut that passes a reader by has no gate. A pass under `torch.no_grad` goes
    through none.

    Args:
        model: the network that `groups` were found in, in eval mode: else the images are not independent.
        groups: the groups whose channels get gates.
        criterion: who asks, for messages.
    """
    gates = ReaderGates(groups, criterion)
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(partial(_gate, gates=of_layer))
        for layer, of_layer in gates.of_layers.items()
    ]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


class ReaderGates:
    """The gates that a forward pass went through: for each layer that reads channels one tensor a call."""

    def __init__(self, groups: ChannelGroups, criterion: str) -> None:
        self.groups = groups
        self.criterion = criterion
        layers = {part.layer for group in groups.values() for part in group.readers}
        self.of_layers: dict[str, list[Tensor]] = {layer: [] for layer in sorted(layers)}

    def slopes(self, loss: Tensor, images: int, *, again: bool = False) -> dict[str, Tensor]:
        """Return ∂loss/∂z of every group's channels and forget the forward pass.

        The slope is `Σ x·∂loss/∂x` over the places where the channel's map x is read, which is also `Σ w·∂loss/∂w` over
        the weights that read it.

        Args:
            loss: the sum of the losses of the images of one forward pass.
            images: how many they were.
            again: more will be asked of this forward pass; it is not forgotten.

        Returns:
            For each group float64 `[images, channels]` on the CPU; 0 where the loss does not depend on a reader.

        Raises:
            RankingError: a reader that does not see one row of its input for each image.
        """
        of_layers = self._of_layers(loss, images, again=again)
        return {name: _of_group(group, of_layers, images) for name, group in self.groups.items()}

    def _of_layers(self, loss: Tensor, images: int, *, again: bool) -> dict[str, Tensor]:
        """Return ∂loss/∂z for each layer's inputs, added over its calls, float64 `[images, inputs]`."""
        flat = [(layer, gate) for layer, of_layer in self.of_layers.items() for gate in of_layer]
        gates = [gate for _, gate in flat]
        if loss.requires_grad and gates:
            found = torch.autograd.grad(loss, gates, retain_graph=again, materialize_grads=True)
        else:  # not one gate is on the way to the loss
            found = tuple(map(torch.zeros_like, gates))
        slopes: dict[str, Tensor] = {}
        for (layer, gate), slope in zip(flat, found, strict=True):
            if len(gate) != images:
                raise RankingError(
                    f"criterion '{self.criterion}', layer '{layer}': expected an input row for each of {images} "
                    f"images, got {len(gate)}"
                )
            slopes[layer] = slopes.get(layer, 0) + slope.double()
        if not again:
            for of_layer in self.of_layers.values():
                of_layer.clear()
        return slopes


@contextmanager
def closed_gates(model: nn.Module, groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> Iterator[None]:
    """Close the gates of some channels: no layer reads them until the end, as if they had been cut.

    Args:
        model: the network that `groups` were found in; its weights are not touched.
        groups: among others those of `removed`.
        removed: for each group the channels to close.
    """
    positions: dict[str, list[int]] = {}
    for name, channels in removed.items():
        for part in groups[name].readers:
            lost = [position for channel in channels for position in part.positions[channel]]
            positions.setdefault(part.layer, []).extend(lost)
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(partial(_close, positions=lost))
        for layer, lost in positions.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Read(torch.autograd.Function):
    """The identity, with a gate's slope as a by-product: a product with ones would be taken in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, axis: int) -> Tensor:  # noqa: ARG004, the gate is open
        ctx.save_for_backward(x)
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        places = [axis for axis in range(1, x.dim()) if axis != ctx.axis]
        product = x * gradient
        return gradient, product.sum(dim=places) if places else product, None


def _gate(layer: nn.Module, inputs: tuple[Any, ...], gates: list[Tensor]) -> tuple[Any, ...]:
    if not torch.is_grad_enabled():
        return inputs
    x: Tensor = inputs[0]
    axis = _channel_axis(layer, x)
    gates.append(x.new_ones(x.shape[0], x.shape[axis]).requires_grad_())
    read = _Read.apply(x, gates[-1], axis)  # type: ignore[no-untyped-call]
    return (read, *inputs[1:])


def _close(layer: nn.Module, inputs: tuple[Any, ...], positions: list[int]) -> tuple[Any, ...]:
    x: Tensor = inputs[0]
    return (
        x.index_fill(_channel_axis(layer, x), torch.tensor(positions, dtype=torch.long, device=x.device), 0),
        *inputs[1:],
    )


def _channel_axis(layer: nn.Module, x: Tensor) -> int:
    return x.dim() - 1 if isinstance(layer, nn.Linear) else 1


def _of_group(group: ChannelGroup, of_layers: dict[str, Tensor], images: int) -> Tensor:
    slopes = torch.zeros(images, group.width, dtype=torch.float64)
    for part in group.readers:
        if part.layer in of_layers:  # an auxiliary head does not run in eval mode
            slopes += of_layers[part.layer][:, torch.tensor(part.positions)].sum(dim=2).cpu()
    return slopes
