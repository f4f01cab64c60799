"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import validate_call

from pruning.data import register
from pruning.data.images import ImageData, TensorSplit
from pruning.data.options import Count, Fraction, Mean, Seed, Std
from pruning.data.partition import divide
from pruning.data.pixels import Pixels
from pruning.errors import DataError
from pruning.models.torchvision_import import import_torchvision

ROOT = Path("data")
PADDING = 4


@register("cifar10")
@validate_call
def cifar10(
    root: Path = ROOT,
    download: bool = False,
    mean: Mean = (0.4914, 0.4822, 0.4465),
    std: Std = (0.2470, 0.2435, 0.2616),
    val_fraction: Fraction = 0.1,
    train_images: Count | None = None,
    seed: Seed = 0,
) -> ImageData:
    """Load 50,000 training images, of which val is drawn, and 10,000 test images; 32×32, 10 classes.

    Augmentation shifts by up to 4 pixels and mirrors.

    Args:
        root: the folder that has `cifar-10-batches-py` or its archive.
        download: fetch what is missing into `root`.
        mean: one value a channel, of intensities in [0, 1].
        std: one value a channel.
        val_fraction: part of the training images that becomes val.
        train_images: how many of the remaining training images to use; None: all.
        seed: draws the splits.

    Raises:
        DataError: the images are not there, or cannot be fetched.
    """
    classes, train, test = _read("CIFAR10", root.expanduser(), download, Pixels(mean, std, PADDING, flip=True))
    return divide("cifar10", classes, train, test=test, val_fraction=val_fraction, train_images=train_images, seed=seed)


@register("cifar100")
@validate_call
def cifar100(
    root: Path = ROOT,
    download: bool = False,
    mean: Mean = (0.5071, 0.4865, 0.4409),
    std: Std = (0.2673, 0.2564, 0.2762),
    val_fraction: Fraction = 0.1,
    train_images: Count | None = None,
    seed: Seed = 0,
) -> ImageData:
    """Load CIFAR-100, `cifar-100-python`; as `cifar10`, with 100 classes."""
    classes, train, test = _read("CIFAR100", root.expanduser(), download, Pixels(mean, std, PADDING, flip=True))
    return divide(
        "cifar100", classes, train, test=test, val_fraction=val_fraction, train_images=train_images, seed=seed
    )


def _read(name: str, root: Path, download: bool, pixels: Pixels) -> tuple[tuple[str, ...], TensorSplit, TensorSplit]:
    """Return classes, training images and test images. torchvision checks the files' MD5 before it unpickles them."""
    dataset = getattr(import_torchvision().datasets, name)
    try:
        train, test = (dataset(root, train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        advice = "cannot be fetched" if download else "set `root` to where it is, or `download` to true"
        raise DataError(f"data source '{name.lower()}': expected {name} in '{root}', got: {error}; {advice}") from None
    return tuple(train.classes), _split(train, pixels), _split(test, pixels)


def _split(dataset: Any, pixels: Pixels) -> TensorSplit:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.tensor(dataset.targets), pixels)
