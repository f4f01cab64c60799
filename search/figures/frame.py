"""The frame of a picture: title, what it says, and axes whose places are in inches; and how its axes look."""

from __future__ import annotations

from textwrap import wrap

from matplotlib.axes import Axes

from search.figures.colours import GRID, QUIET
from search.figures.sheet import Sheet

LARGE, SMALL = 10.0, 14.5
"""So many letters of the title, and of the caption, are an inch wide."""
HEADLINE, LINE = 0.22, 0.16
"""Their heights in inches."""


class Frame:
    """A sheet with a title and a caption; places count in inches from its left edge and from below the caption.

    Args:
        title: in bold.
        caption: says how to read the picture; as many lines as it needs.
        width: of the sheet.
        height: below the caption.
    """

    def __init__(self, title: str, caption: str, width: float, height: float) -> None:
        headlines, lines = (wrap(text, int(each * (width - 0.3))) for text, each in ((title, LARGE), (caption, SMALL)))
        below = 0.12 + HEADLINE * len(headlines)
        self.top = below + 0.06 + LINE * len(lines)
        self.sheet = Sheet(width, self.top + height)
        self.figure = self.sheet.figure
        self.sheet.text(0.15, 0.1, "\n".join(headlines), fontsize=11, fontweight="bold")
        self.sheet.text(0.15, below, "\n".join(lines), fontsize=8.5, color=QUIET)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes whose frame fills a rectangle."""
        return self.sheet.axes(left, self.top + top, width, height)

    def legend(self, left: float, top: float, axes: Axes, columns: int = 6) -> None:
        """Put the legend of some axes with its upper left corner at a place; none if nothing has a name."""
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            place = left / self.sheet.width, 1 - (self.top + top) / self.sheet.height
            style = {"fontsize": 8.5, "frameon": False, "borderpad": 0, "borderaxespad": 0, "columnspacing": 1.4}
            self.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, ncols=columns, **style)


def quiet(axes: Axes) -> None:
    """Draw a light grid behind the data, and no more frame than is read."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.title.set_color(QUIET)
