"""Taylor: how much the loss would change, to first order, if nobody could read the channel any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.criteria import Batches, calibration, evaluating, register
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.ranking import NestedRanking


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

    def __init__(self, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'taylor', images: expected at least 1, got {images}")
        self.images = images

    def rank(self, model: nn.Module, groups: ChannelGroups, batches: Batches | None = None) -> NestedRanking:
        """Order every group by its scores; see `Criterion.rank`."""
        layers = sorted({part.layer for group in groups.values() for part in group.readers})
        scores = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in groups.items()}
        seen = 0
        with evaluating(model), torch.enable_grad(), _gates(model, layers) as gates:
            for images, labels in calibration(batches, self.name, model, self.images):
                loss = F.cross_entropy(model(images), labels, reduction="sum")
                gradients = self._gradients(loss, gates, len(images))
                for name, group in groups.items():
                    scores[name] += _closed(group, gradients, len(images)).square().sum(dim=0)
                seen += len(images)
        return NestedRanking.from_scores(self.name, {name: score / seen for name, score in scores.items()})

    def _gradients(self, loss: Tensor, gates: dict[str, list[Tensor]], images: int) -> dict[str, Tensor]:
        """Return ∂L/∂z for each layer's inputs, added over its calls, float64 `[images, inputs]`; empty the gates."""
        flat = [(layer, gate) for layer, of_layer in gates.items() for gate in of_layer]
        found = torch.autograd.grad(loss, [gate for _, gate in flat], materialize_grads=True) if flat else ()
        gradients: dict[str, Tensor] = {}
        for (layer, gate), gradient in zip(flat, found, strict=True):
            if len(gate) != images:
                raise RankingError(
                    f"criterion '{self.name}', layer '{layer}': expected an input row for each of {images} images, "
                    f"got {len(gate)}"
                )
            gradients[layer] = gradients.get(layer, 0) + gradient.reshape(images, -1).double()
        for of_layer in gates.values():
            of_layer.clear()
        return gradients


@contextmanager
def _gates(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Put a gate on every input channel of `layers`; a forward pass adds each layer's gates to the yielded lists."""
    gates: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(partial(_gate, gates=of_layer))
        for layer, of_layer in gates.items()
    ]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _gate(layer: nn.Module, inputs: tuple[Any, ...], gates: list[Tensor]) -> tuple[Any, ...]:
    x: Tensor = inputs[0]
    shape = [1] * x.dim()
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
    shape[0], shape[axis] = x.shape[0], x.shape[axis]
    gates.append(x.new_ones(shape).requires_grad_())
    return (x * gates[-1], *inputs[1:])


def _closed(group: ChannelGroup, gradients: dict[str, Tensor], images: int) -> Tensor:
    """Return ∂L/∂z where one gate closes a channel for all its readers, float64 `[images, channels]`."""
    closed = torch.zeros(images, group.width, dtype=torch.float64)
    for part in group.readers:
        if part.layer in gradients:  # an auxiliary head does not run in eval mode
            closed += gradients[part.layer][:, torch.tensor(part.positions)].sum(dim=2).cpu()
    return closed
