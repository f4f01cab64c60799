"""From image files to what a network sees, and from what it sees back to what people see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pruning.data.decoding import Decoder, image_size
from pruning.data.images import ImageData, TensorSplit
from pruning.data.pixels import Pixels
from pruning.data.streaming import StreamedSplit
from pruning.errors import DataError


def read_picture(path: Path, data: ImageData) -> Tensor:
    """Read an image file, resized and normalised as the validation images are, `[1, channels, height, width]`.

    Images that the data keep in memory have forgotten how they were resized. An image of their size is taken as it is;
    of any other the shorter side becomes as long as the longer one of theirs, and the centre is cut out.

    Raises:
        DataError: no readable image, or data that do not say how they are normalised.
    """
    pixels = _pixels(data)
    if pixels is None or data.image_shape[0] not in (1, 3):
        raise DataError(f"{path}: expected data of gray or RGB bytes to read it like, got '{data.name}'")
    decoder = Decoder(*data.image_shape)
    if isinstance(data.val, StreamedSplit):
        decoder = data.val.decoder
    if decoder.resize is None and image_size(path) != data.image_shape[1:]:
        decoder = replace(decoder, resize=max(data.image_shape[1:]))
    return pixels.normalise(decoder.read(path).unsqueeze(0))


def intensities(images: Tensor, data: ImageData) -> Tensor:
    """Return normalised images as intensities from 0 to 1, `[images, channels, height, width]`.

    Where the data do not say how they are normalised, each image's own range is taken.
    """
    pixels = _pixels(data)
    if pixels is not None:
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
        return (images * std + mean).clamp(0, 1)
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def _pixels(data: ImageData) -> Pixels | None:
    return data.val.pixels if isinstance(data.val, TensorSplit | StreamedSplit) else None
