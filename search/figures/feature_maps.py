"""Feature maps of channels that are kept and of those that are removed, side by side; DCP's figure S5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search.figures.colours import BEST, FRONT, MAPS
from search.figures.sheet import Sheet

ACROSS = 8
"""Maps side by side in a block."""

MOST = 16
"""Channels in a block at most."""

MAP, LINE, PICTURE, GAP, MARGIN, TOP = 0.56, 0.74, 1.15, 0.3, 0.15, 0.95
"""Inches: a map's side, from map to map below, the image's side, between blocks, around all, above the first row."""

LETTERS = 18
"""Of an image's title that fit above it."""

NAMES = 0.7
"""Inches to the right of the colour scale."""


@dataclass(frozen=True)
class ImageMaps:
    """One image and what a layer reads of it.

    Attributes:
        title: class or file.
        picture: 0 to 1, `[height, width]` or `[height, width, 3]`.
        maps: of every channel of the group, `[channels, height, width]`.
    """

    title: str
    picture: NDArray[Any]
    maps: NDArray[Any]


@dataclass(frozen=True)
class _Block:
    """Channels that stand together.

    Attributes:
        heading: above them.
        colour: of heading and frames.
        channels: in the order in which they are shown.
        left: where the block begins, in inches.
    """

    heading: str
    colour: str
    channels: list[int]
    left: float

    @property
    def columns(self) -> int:
        return max(4, min(ACROSS, len(self.channels)))

    @property
    def lines(self) -> int:
        return ceil(len(self.channels) / ACROSS)

    @property
    def right(self) -> float:
        return self.left + self.columns * MAP * 1.06


def plot_maps(
    images: Sequence[ImageMaps], kept: Sequence[int], removed: Sequence[int], *, title: str = "", subtitle: str = ""
) -> Figure:
    """Draw a row an image: the image, the maps of the first 16 kept channels, those of the last 16 removed ones.

    The maps of a row share one colour scale: from 0, or their least value, to the 99.5th percentile of all that are
    shown.

    Args:
        images: at least one.
        kept: the most important channel first.
        removed: the least important channel last.
        title: in bold above all.
        subtitle: below it.
    """
    stays, goes = list(kept)[:MOST], list(removed)[-MOST:]
    one = _Block(_heading("kept", "first", stays, kept), FRONT, stays, MARGIN + PICTURE + GAP)
    other = _Block(_heading("removed", "last", goes, removed), BEST, goes, one.right + GAP)
    step = max(LINE * max(one.lines, other.lines), PICTURE + 0.2) + 0.2
    sheet = Sheet(max(other.right + NAMES + MARGIN, 6.5), TOP + step * len(images))
    sheet.heading(title, subtitle)
    for block in (one, other):
        sheet.text(block.left, TOP - 0.3, block.heading, fontsize=9, color=block.colour, fontweight="bold")
    for number, image in enumerate(images):
        _row(sheet, TOP + step * number, image, (one, other))
    return sheet.figure


def _row(sheet: Sheet, top: float, image: ImageMaps, blocks: Sequence[_Block]) -> None:
    axes = sheet.axes(MARGIN, top + 0.14, PICTURE, PICTURE)
    axes.imshow(image.picture, cmap="gray", vmin=0, vmax=1)
    title = image.title if len(image.title) <= LETTERS else f"…{image.title[1 - LETTERS :]}"
    axes.set_title(title, fontsize=8, pad=3)
    axes.set_axis_off()
    shown = image.maps[[channel for block in blocks for channel in block.channels]]
    low, high = min(float(shown.min()), 0.0), float(np.percentile(shown, 99.5))
    style: dict[str, Any] = {"cmap": MAPS, "vmin": low, "vmax": max(high, low + 1e-9), "interpolation": "nearest"}
    drawn: Any = None
    for block in blocks:
        for place, channel in enumerate(block.channels):
            line, column = divmod(place, ACROSS)
            cell = sheet.axes(block.left + column * MAP * 1.06, top + 0.14 + line * LINE, MAP, MAP)
            drawn = cell.imshow(image.maps[channel], **style)
            cell.set_title(str(channel), fontsize=7, pad=1.5)
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(color=block.colour, linewidth=1.2)
    bar = sheet.axes(blocks[-1].right + 0.1, top + 0.14, 0.1, max(LINE * blocks[0].lines - 0.18, MAP))
    sheet.figure.colorbar(drawn, cax=bar, extend="max" if float(shown.max()) > high else "neither")
    bar.tick_params(labelsize=7)


def _heading(word: str, which: str, shown: Sequence[int], every: Sequence[int]) -> str:
    return f"{word}: {len(every)}" if len(shown) == len(every) else f"{word}: {len(every)}, the {which} {len(shown)}"
