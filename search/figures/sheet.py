"""A figure whose parts have their places in inches, so that cells and small pictures are of one size on all."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Sheet:
    """A figure of given size; places count in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=150)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes whose frame fills a rectangle."""
        bottom = 1 - (top + height) / self.height
        return self.figure.add_axes((left / self.width, bottom, width / self.width, height / self.height))

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write below and to the right of a point."""
        self.figure.text(left / self.width, 1 - top / self.height, text, va="top", **style)

    def heading(self, title: str, subtitle: str) -> None:
        """Write a title and what it means in the upper left corner, 0.6 inches high."""
        self.text(0.15, 0.1, title, fontsize=11, fontweight="bold")
        self.text(0.15, 0.34, subtitle, fontsize=8.5, color="#555555")
