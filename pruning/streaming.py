"""One pass over the images for all who look at feature maps: each sees a map where it is read, and lets it go."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups, Slice


@dataclass(frozen=True)
class Reading:
    """What one layer read of one group, for the images of a batch.

    Attributes:
        group: the group.
        part: where the layer's weight reads it.
        layer: the layer.
        inputs: all that the layer read, `[images, …]`.
        output: what it put out, `[images, …]`.
        images: what the network was shown, `[images, …]`.
        labels: int64 `[images]`.
        repeated: another reader of the group has read this very tensor in this forward pass.
    """

    group: ChannelGroup
    part: Slice
    layer: nn.Module
    inputs: Tensor
    output: Tensor
    images: Tensor
    labels: Tensor
    repeated: bool

    @cached_property
    def maps(self) -> Tensor:
        """The group's feature maps as the layer reads them, `[images, channels, height, width]`.

        What has one place (a linear layer behind a pool) is a map of 1 × 1, what was flattened a map of one row; a
        channel with several positions has their maps one above the other.
        """
        axis = self.inputs.dim() - 1 if isinstance(self.layer, nn.Linear) else 1
        positions = torch.tensor(self.part.positions, device=self.inputs.device)
        x = self.inputs.movedim(axis, 1)
        if positions.numel() != x.shape[1] or not torch.equal(
            positions.flatten(), torch.arange(x.shape[1], device=x.device)
        ):
            x = x.index_select(1, positions.flatten())
        images, channels, width = len(x), len(positions), x.shape[-1] if x.dim() > 2 else positions.shape[1]
        return x.reshape(images, channels, -1, width)

    def first(self, images: int) -> Reading:
        """Return the reading of the first `images` images."""
        if images >= len(self.labels):
            return self
        cut = {name: getattr(self, name)[:images] for name in ("inputs", "output", "images", "labels")}
        return replace(self, **cut)


class Observer(Protocol):
    """Looks at every reading of a pass once, and keeps what it needs of it."""

    def see(self, reading: Reading) -> None:
        """Look at one layer's reading of one group; called under `torch.no_grad`."""
        ...


@dataclass(frozen=True)
class Request:
    """Who looks at how many images.

    Attributes:
        observer: who looks.
        images: at the first so many; None for all.
        together: all of them in one batch, whatever the batches' size.
    """

    observer: Observer
    images: int | None = None
    together: bool = False


def observe(
    model: nn.Module, groups: ChannelGroups, batches: Iterable[tuple[Tensor, Tensor]], requests: Sequence[Request]
) -> None:
    """Show every observer all readings of `groups`, in one pass over the images; the hooks are gone afterwards.

    Nothing is kept of a batch: memory does not grow with the number of images. A group in front of layers that do not
    run, such as torchvision's auxiliary heads in eval mode, is not seen there.

    Args:
        model: the network that `groups` were found in, in the mode in which it is to run.
        groups: whose readings to show.
        batches: images and labels, in the type and place of the weights; read once, and no further than is asked for.
        requests: who looks.

    Raises:
        RankingError: a layer that does not see one row of its input for each image.
    """
    most = max((request.images or 0 for request in requests if request.together), default=0)
    seen = 0
    current: dict[str, Any] = {}
    with torch.no_grad(), _hooked(model, groups, requests, current):
        for images, labels in _in_one_batch(batches, most):
            current.update(images=images, labels=labels, seen=seen, known=defaultdict(list))
            model(images)
            current.clear()
            seen += len(labels)
            if all(request.images is not None and request.images <= seen for request in requests):
                break


@contextmanager
def _hooked(
    model: nn.Module, groups: ChannelGroups, requests: Sequence[Request], current: dict[str, Any]
) -> Iterator[None]:
    of_layers: dict[str, list[tuple[ChannelGroup, Slice]]] = defaultdict(list)
    for group in groups.values():
        for part in group.readers:
            of_layers[part.layer].append((group, part))
    hooks = []
    try:
        for layer, parts in of_layers.items():
            show = partial(_show, parts=parts, requests=requests, current=current)
            hooks.append(model.get_submodule(layer).register_forward_hook(show))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _show(
    layer: nn.Module,
    inputs: tuple[Any, ...],
    output: Tensor,
    *,
    parts: Sequence[tuple[ChannelGroup, Slice]],
    requests: Sequence[Request],
    current: dict[str, Any],
) -> None:
    x: Tensor = inputs[0]
    if len(x) != len(current["labels"]):
        raise RankingError(
            f"layer '{parts[0][1].layer}': expected an input row for each of {len(current['labels'])} images, "
            f"got {len(x)}"
        )
    for group, part in parts:
        known: list[weakref.ref[Tensor]] = current["known"][group.name]
        repeated = any(other() is x for other in known)
        known.append(weakref.ref(x))
        reading = Reading(group, part, layer, x, output, current["images"], current["labels"], repeated)
        for request in requests:
            left = len(x) if request.images is None else request.images - current["seen"]
            if left > 0:
                request.observer.see(reading.first(left))


def _in_one_batch(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first `count` images in one batch, and the others as they come."""
    parts: list[tuple[Tensor, Tensor]] = []
    held = 0
    for images, labels in batches:
        if held >= count:
            yield images, labels
            continue
        take = count - held
        parts.append((images[:take], labels[:take]))
        held += len(parts[-1][1])
        if held == count:
            yield torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
            if take < len(labels):
                yield images[take:], labels[take:]
    if 0 < held < count:
        yield torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
