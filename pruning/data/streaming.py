"""Images that do not fit in memory: files, decoded by worker processes while the network computes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pruning.data.decoding import Decoder
from pruning.data.files import Files
from pruning.data.images import Batch, TensorSplit, draw_order
from pruning.data.pixels import Pixels, Shifts
from pruning.data.stratified import draw_stratified
from pruning.errors import DataError

SEEDS = 2**62


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Images read from files in each epoch; batches are normalised on the device.

    Attributes:
        files: where the images are.
        labels: int64 `[images]`, on the CPU.
        decoder: how a file becomes bytes.
        pixels: normalisation and augmentation.
        workers: processes that decode; 0 decodes in the caller's own.
    """

    files: Files
    labels: Tensor
    decoder: Decoder
    pixels: Pixels
    workers: int = 4

    def __post_init__(self) -> None:
        self.pixels.check_channels(self.decoder.channels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.decoder.image_shape

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """See `ImageSplit.batches`; the number of workers changes nothing.

        Raises:
            DataError: a file that cannot be read, when its batch is due.
        """
        order = draw_order(len(self), shuffle, generator)
        shifts = self.pixels.draw(len(self), generator) if augment else None
        cropped = augment and self.decoder.random_crop
        seeds = torch.randint(SEEDS, (len(self),), generator=generator) if cropped else None
        return self._batches(batch_size, order, shifts, seeds, torch.device(device))

    def _batches(
        self, batch_size: int, order: Tensor, shifts: Shifts | None, seeds: Tensor | None, device: torch.device
    ) -> Iterator[Batch]:
        parts = [slice(start, start + batch_size) for start in range(0, len(self), batch_size)]
        shifts = shifts and shifts.to(device)
        decoded = self._loader(_Decoding(self.files, self.decoder, order, seeds), parts, device)
        for part, images in zip(parts, decoded, strict=True):
            if isinstance(images, str):
                raise DataError(images)
            images = images.to(device, non_blocking=True)
            images = shifts[part].apply(images) if shifts else images
            yield self.pixels.normalise(images), self.labels[order[part]].to(device, non_blocking=True)

    def _loader(self, decoding: _Decoding, parts: list[slice], device: torch.device) -> DataLoader[Tensor | str]:
        return DataLoader(
            decoding,
            batch_size=None,  # an item is a batch already
            sampler=parts,
            num_workers=min(self.workers, len(parts)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )

    def subset(self, count: int, seed: int) -> StreamedSplit:
        """See `ImageSplit.subset`."""
        return self.take(draw_stratified(self.labels, min(count, len(self)), seed)[0])

    def take(self, images: Tensor) -> StreamedSplit:
        """Return the images with these indices, int64 `[images]`."""
        return StreamedSplit(self.files.take(images), self.labels[images], self.decoder, self.pixels, self.workers)

    def loaded(self) -> TensorSplit:
        """Read every file into memory.

        Raises:
            DataError: a file that cannot be read.
        """
        images = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)

        def load(image: int) -> None:
            images[image] = self.decoder.read(self.files.path(image))

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for _ in threads.map(load, range(len(self))):
                pass  # the first failure is raised here
        return TensorSplit(images, self.labels, self.pixels)

    def digest(self) -> str:
        """Return hex digits of paths below the root, file sizes, labels, decoding, normalisation and augmentation."""
        content = hashlib.sha256(repr((self.decoder, self.pixels)).encode())
        for path in self.files.paths:
            content.update(bytes(path) + b"\0")
        content.update(self.files.sizes.tobytes() + self.labels.numpy().tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class _Decoding(Dataset[Tensor | str]):
    """Batches of one epoch; an unreadable file gives its message, because an exception comes back as a traceback."""

    files: Files
    decoder: Decoder
    order: Tensor
    seeds: Tensor | None

    def __getitem__(self, part: slice) -> Tensor | str:
        images: Sequence[int] = self.order[part].tolist()
        seeds = self.seeds[part].tolist() if self.seeds is not None else [None] * len(images)
        try:
            pairs = zip(images, seeds, strict=True)
            return torch.stack([self.decoder.read(self.files.path(image), seed) for image, seed in pairs])
        except DataError as error:
            return str(error)
