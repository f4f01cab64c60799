"""ImageNet, or any folders of photographs trained on the way ImageNet is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, validate_call

from pruning.data import register
from pruning.data.decoding import Decoder
from pruning.data.files import ClassFolders, scan
from pruning.data.images import ImageData
from pruning.data.options import Count, Fraction, Mean, Seed, Std
from pruning.data.partition import divide
from pruning.data.pixels import IMAGENET_MEAN, IMAGENET_STD, Pixels
from pruning.data.streaming import StreamedSplit


@register("imagenet")
@validate_call
def imagenet(
    root: Path,
    size: Count = 224,
    resize: Count | None = None,
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    val_fraction: Fraction = 0.02,
    train_images: Count | None = None,
    seed: Seed = 0,
    workers: Annotated[int, Field(ge=0)] = 8,
) -> ImageData:
    """Stream `root/train/<class>/…` and `root/val/<class>/…`, the layout that torchvision's ImageNet unpacks to.

    Every paper reports accuracy on the images in `root/val`, so they are the test split here; the val split, on which
    a search chooses, is drawn from `root/train`. Augmentation cuts out a random part and mirrors; evaluation resizes
    the shorter side and cuts out the centre.

    Args:
        root: the folder that has `train` and `val`.
        size: side of the images that the network sees.
        resize: length of the shorter side before the centre is cut out; None: 8/7 of `size`, 256 for 224.
        mean: one value a channel, of intensities in [0, 1].
        std: one value a channel.
        val_fraction: part of `train` that becomes val.
        train_images: how many of the remaining training images to use; None: all.
        seed: draws the splits.
        workers: processes that decode; 0: the caller's own.

    Raises:
        DataError: no such folder, no images, classes that differ; from `batches`: an unreadable image.
    """
    decoder = Decoder(3, size, size, resize=resize or size * 8 // 7, random_crop=True)
    pixels = Pixels(mean, std, flip=True)

    def stream(folders: ClassFolders) -> StreamedSplit:
        return StreamedSplit(folders.files, folders.labels, decoder, pixels, workers)

    train = scan(root.expanduser() / "train")
    return divide(
        "imagenet",
        train.classes,
        stream(train),
        test=stream(scan(root.expanduser() / "val", train.classes)),
        val_fraction=val_fraction,
        train_images=train_images,
        seed=seed,
    )
