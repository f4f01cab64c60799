"""Image files become bytes of one shape."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pruning.errors import DataError

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Decoder:
    """Reads image files.

    Attributes:
        channels: 3 for RGB, 1 for gray.
        height: rows of the result.
        width: columns of the result.
        resize: the shorter side becomes this long, then the centre is cut out. None: a file must have the right size.
        random_crop: augmentation cuts out a random part, 8 % to 100 % of the area with sides 3:4 to 4:3, and resizes
            it (Szegedy et al., Going Deeper with Convolutions, CVPR 2015).
    """

    channels: int
    height: int
    width: int
    resize: int | None = None
    random_crop: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise DataError(f"resize: expected at least the size {max(self.height, self.width)}, got {self.resize}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    def read(self, path: Path, crop_seed: int | None = None) -> Tensor:
        """Read one file as bytes `[channels, height, width]`.

        Args:
            path: any format that Pillow knows.
            crop_seed: draws the random crop; None: the centre.

        Raises:
            DataError: no readable image, or one of another size.
        """
        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if self.channels == 3 else "L")
        except Exception as error:  # a damaged file makes decoders raise anything
            raise DataError(f"{path}: expected a readable image, got {type(error).__name__}: {error}") from None
        pixels = np.array(self._fit(image, path, crop_seed)).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _fit(self, image: Image.Image, path: Path, crop_seed: int | None) -> Image.Image:
        if self.random_crop and crop_seed is not None:
            box = draw_crop(image.width, image.height, random.Random(crop_seed))
            return image.crop(box).resize((self.width, self.height), Image.Resampling.BILINEAR)
        if self.resize is not None:
            return self._centre(image, self.resize)
        if image.size != (self.width, self.height):
            expected, got = f"{self.width}×{self.height}", f"{image.width}×{image.height}"
            raise DataError(f"{path}: expected {expected} pixels as in the first image, got {got}; set `size`")
        return image

    def _centre(self, image: Image.Image, resize: int) -> Image.Image:
        shorter = min(image.size)
        width, height = (resize * side // shorter for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.width) / 2), round((height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def draw_crop(width: int, height: int, draw: random.Random) -> Box:
    """Draw a part of an image: left, top, right, bottom; the centre where no drawn shape fits."""
    for _ in range(ATTEMPTS):
        area = width * height * draw.uniform(*AREA)
        aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            left, top = draw.randint(0, width - columns), draw.randint(0, height - rows)
            return left, top, left + columns, top + rows
    columns, rows = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file.

    Raises:
        DataError: no readable image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # see Decoder.read
        raise DataError(f"{path}: expected a readable image, got {type(error).__name__}: {error}") from None
