"""Images in folders, one a class: `root/train/<class>/…`, with `val` and `test` beside `train` where there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, validate_call

from pruning.data import register
from pruning.data.decoding import Decoder, image_size
from pruning.data.files import scan
from pruning.data.images import ImageData
from pruning.data.options import Count, Fraction, Mean, Seed, Std
from pruning.data.partition import divide
from pruning.data.pixels import IMAGENET_MEAN, IMAGENET_STD, Pixels
from pruning.data.streaming import StreamedSplit


@register("image_folder")
@validate_call
def image_folder(
    root: Path,
    size: Count | None = None,
    channels: Literal[1, 3] = 3,
    mean: Mean | None = None,
    std: Std | None = None,
    padding: Annotated[int, Field(ge=0)] | None = None,
    flip: bool = True,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.1,
    train_images: Count | None = None,
    seed: Seed = 0,
    max_device_bytes: Annotated[int, Field(ge=0)] = 2**30,
    workers: Annotated[int, Field(ge=0)] = 4,
) -> ImageData:
    """Load a tree of image files.

    Where `root/val` or `root/test` is missing, that split is drawn from `root/train` by class shares, disjoint from
    the rest. Augmentation shifts and mirrors. Images that fit are kept as bytes in memory and move to the device once;
    otherwise worker processes decode them in each epoch. Both ways give the same batches.

    Args:
        root: the folder that has `train`.
        size: the shorter side becomes this long and the centre square is cut out. None: all images have the size of
            the first one.
        channels: 3 for RGB, 1 for gray.
        mean: one value a channel, of intensities in [0, 1]; None: ImageNet's.
        std: one value a channel; None: ImageNet's.
        padding: augmentation shifts by up to this many pixels; None: an eighth of the shorter side.
        flip: augmentation mirrors half of the images.
        val_fraction: part of `train` that becomes val where there is no `root/val`.
        test_fraction: part of `train` that becomes test where there is no `root/test`.
        train_images: how many of the remaining training images to use; None: all.
        seed: draws the splits.
        max_device_bytes: the images are kept in memory if all together are no larger than this.
        workers: processes that decode images which are not; 0: the caller's own.

    Raises:
        DataError: no such folder, no images, an unreadable image, sizes that differ, classes that differ.
    """
    train = scan(root.expanduser() / "train")
    own = {
        part: scan(root.expanduser() / part, train.classes)
        for part in ("val", "test")
        if (root.expanduser() / part).is_dir()
    }
    height, width = (size, size) if size else image_size(train.files.path(0))
    decoder = Decoder(channels, height, width, resize=size)
    pixels = Pixels(
        mean or _channelwise(IMAGENET_MEAN, channels),
        std or _channelwise(IMAGENET_STD, channels),
        padding=min(height, width) // 8 if padding is None else padding,
        flip=flip,
    )
    streams = {
        part: StreamedSplit(folders.files, folders.labels, decoder, pixels, workers)
        for part, folders in {"train": train, **own}.items()
    }
    fit = sum(map(len, streams.values())) * channels * height * width <= max_device_bytes
    splits = {part: stream.loaded() if fit else stream for part, stream in streams.items()}
    return divide(
        "image_folder",
        train.classes,
        splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        train_images=train_images,
        seed=seed,
    )


def _channelwise(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return RGB values, or their mean for gray images."""
    return values if channels == len(values) else (sum(values) / len(values),)
