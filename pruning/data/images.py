"""Image splits: what trains, what chooses, what is opened once."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pruning.data.pixels import Pixels, Shifts
from pruning.data.stratified import draw_stratified
from pruning.errors import DataError

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class ImageSplit(Protocol):
    """Labelled images that come in batches."""

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Return every image once, the last batch may be short.

        Args:
            batch_size: images in a batch.
            shuffle: in random order, else always in the same one.
            augment: changed at random as suits the source.
            generator: a CPU generator, the only source of randomness: equal states give equal batches on every
                device. All is drawn in the call itself. None: torch's global generator.
            device: where the batches are.

        Returns:
            Pairs of normalised images, float32 `[images, channels, height, width]`, and labels, int64 `[images]`.
        """
        ...

    def subset(self, count: int, seed: int) -> ImageSplit:
        """Return `count` of the images, drawn by class shares, in random order; all where there are fewer.

        Raises:
            DataError: `count` below 1.
        """
        ...


class IndexedSplit(ImageSplit, Protocol):
    """A split that can be divided, and whose content has a digest."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 `[images]`, on the CPU."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    def take(self, images: Tensor) -> Self:
        """Return the images with these indices, int64 `[images]`."""
        ...

    def digest(self) -> str:
        """Return hex digits that splits of equal content share."""
        ...


@dataclass(frozen=True)
class ImageData:
    """A set of images in three disjoint splits.

    Attributes:
        name: the source.
        fingerprint: 16 hex digits of content, split and normalisation; part of the key of everything computed from it.
        classes: what the labels 0, 1, … mean.
        image_shape: channels, height, width.
        train: for criteria and fine-tuning.
        val: for the choices of a search.
        test: for the final word on what was chosen.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: ImageSplit
    val: ImageSplit
    test: ImageSplit

    @classmethod
    def from_splits(
        cls, name: str, classes: tuple[str, ...], train: IndexedSplit, val: IndexedSplit, test: IndexedSplit
    ) -> ImageData:
        """Make the set of three splits that are already disjoint."""
        content = repr((name, classes, *(split.digest() for split in (train, val, test))))
        fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        return cls(name, fingerprint, classes, train.image_shape, train, val, test)


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images that fit in memory: bytes that move to a device once and are cut, mirrored and normalised there.

    Attributes:
        images: uint8 `[images, channels, height, width]`, on the CPU.
        labels: int64 `[images]`, on the CPU.
        pixels: normalisation and augmentation.
    """

    images: Tensor
    labels: Tensor
    pixels: Pixels
    _moved: dict[torch.device, Batch] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            got = f"{tuple(self.images.shape)} of {self.images.dtype}"
            raise DataError(f"images: expected bytes [images, channels, height, width], got {got}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            got = f"{tuple(self.labels.shape)} of {self.labels.dtype}"
            raise DataError(f"labels: expected {len(self.images)} of torch.int64, got {got}")
        self.pixels.check_channels(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Travel as arrays, which processes of one machine can share; whoever gets them so may not write to them."""
        return {"images": self.images.numpy(), "labels": self.labels.numpy(), "pixels": self.pixels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images, labels = torch.from_numpy(state["images"]), torch.from_numpy(state["labels"])
        self.__dict__.update(images=images, labels=labels, pixels=state["pixels"], _moved={})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """See `ImageSplit.batches`."""
        order = draw_order(len(self), shuffle, generator)
        shifts = self.pixels.draw(len(self), generator) if augment else None
        return self._batches(batch_size, order, shifts, torch.device(device))

    def _batches(self, batch_size: int, order: Tensor, shifts: Shifts | None, device: torch.device) -> Iterator[Batch]:
        images, labels = self._on(device)
        order, shifts = order.to(device), shifts and shifts.to(device)
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            chosen = images[order[part]]
            chosen = shifts[part].apply(chosen) if shifts else chosen
            yield self.pixels.normalise(chosen), labels[order[part]]

    def _on(self, device: torch.device) -> Batch:
        if device not in self._moved:
            self._moved[device] = self.images.to(device), self.labels.to(device)
        return self._moved[device]

    def subset(self, count: int, seed: int) -> TensorSplit:
        """See `ImageSplit.subset`."""
        return self.take(draw_stratified(self.labels, min(count, len(self)), seed)[0])

    def take(self, images: Tensor) -> TensorSplit:
        """Return the images with these indices, int64 `[images]`."""
        return TensorSplit(self.images[images], self.labels[images], self.pixels)

    def digest(self) -> str:
        """Return hex digits of bytes, labels, normalisation and augmentation."""
        content = hashlib.sha256(repr((self.pixels, self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()


def draw_order(count: int, shuffle: bool, generator: torch.Generator | None) -> Tensor:
    """Return the order of an epoch, int64 `[images]`."""
    return torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
