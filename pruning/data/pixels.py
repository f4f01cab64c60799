"""How stored bytes become the numbers a network sees: shift, mirror, normalise; whole batches, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """Normalisation and augmentation of byte images.

    Attributes:
        mean: what is subtracted, one value a channel, of intensities in [0, 1].
        std: what is divided by, one value a channel.
        padding: augmentation shifts each image by up to this many pixels each way; black comes in at the border.
        flip: augmentation mirrors each image left to right with probability 1/2.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            got = f"mean {self.mean}, std {self.std}"
            raise DataError(f"normalisation: expected a mean and a positive std for each channel, got {got}")

    def check_channels(self, channels: int) -> None:
        """Refuse images with another number of channels.

        Raises:
            DataError: not one mean and std a channel.
        """
        if len(self.mean) != channels:
            raise DataError(f"normalisation: expected {channels} means and stds, one a channel, got {len(self.mean)}")

    def normalise(self, images: Tensor) -> Tensor:
        """Return `(images / 255 - mean) / std`, float32, for bytes `[images, channels, height, width]`."""
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)

    def draw(self, count: int, generator: torch.Generator | None) -> Shifts:
        """Draw the augmentation of `count` images from a CPU generator, or from torch's own where it is None."""
        rows, columns = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        return Shifts(self.padding, rows, columns, mirrored)


@dataclass(frozen=True)
class Shifts:
    """The augmentation of some images, drawn.

    Attributes:
        padding: black pixels added on every side before the crop.
        rows: where each crop starts in the padded image, 0 to 2·padding, int64 `[images]`.
        columns: the same along the width.
        mirrored: which images are mirrored after the crop, bool `[images]`.
    """

    padding: int
    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    def __getitem__(self, images: slice) -> Shifts:
        return Shifts(self.padding, self.rows[images], self.columns[images], self.mirrored[images])

    def to(self, device: torch.device | str) -> Shifts:
        """Return the same on another device."""
        return Shifts(self.padding, self.rows.to(device), self.columns.to(device), self.mirrored.to(device))

    def apply(self, images: Tensor) -> Tensor:
        """Return each image shifted and mirrored as drawn, `[images, channels, height, width]` in and out."""
        height, width = images.shape[2:]
        windows = F.pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        crops = windows[torch.arange(len(images), device=images.device), :, self.rows, self.columns]
        return torch.where(self.mirrored.view(-1, 1, 1, 1), crops.flip(-1), crops)
