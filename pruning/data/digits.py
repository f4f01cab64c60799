"""Handwritten digits that come with scikit-learn: nothing to download, an epoch in a second."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, validate_call
from torch import Tensor

from pruning.data import register
from pruning.data.images import ImageData, TensorSplit
from pruning.data.options import Count, Fraction, Mean, Seed, Std
from pruning.data.partition import divide
from pruning.data.pixels import Pixels


@register("digits")
@validate_call
def digits(
    size: Annotated[int, Field(ge=8)] = 16,
    channels: Annotated[int, Field(ge=1)] = 3,
    mean: Mean | None = None,
    std: Std | None = None,
    val_fraction: Fraction = 0.15,
    test_fraction: Fraction = 0.15,
    train_images: Count | None = None,
    seed: Seed = 0,
) -> ImageData:
    """Load 1,797 digits of 8×8 pixels, 10 classes.

    Augmentation shifts by up to an eighth of the size and never mirrors.

    Args:
        size: side after bilinear interpolation.
        channels: the gray values are repeated.
        mean: one value a channel; None: the data set's.
        std: one value a channel; None: the data set's.
        val_fraction: part of all images.
        test_fraction: part of all images.
        train_images: how many of the rest to train on; None: all.
        seed: draws the splits.
    """
    from sklearn.datasets import load_digits  # a second to import, for this source alone

    source = load_digits()
    pixels = Pixels(mean or (0.305,) * channels, std or (0.32,) * channels, padding=size // 8)
    images = _enlarge(torch.from_numpy(source.images), size).expand(-1, channels, -1, -1)
    every = TensorSplit(images, torch.from_numpy(source.target).long(), pixels)
    return divide(
        "digits",
        tuple(str(digit) for digit in source.target_names),
        every,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        train_images=train_images,
        seed=seed,
    )


def _enlarge(images: Tensor, size: int) -> Tensor:
    """Return levels 0 to 16, `[images, 8, 8]`, as bytes `[images, 1, size, size]`."""
    levels = F.interpolate(images.unsqueeze(1), size=(size, size), mode="bilinear")
    return (levels * (255 / 16)).round().to(torch.uint8)
