"""Every picture: a sweep's front as PNG, page and table; how far criteria agree; what a cut costs; feature maps."""

from search.figures.agreement import plot_agreement
from search.figures.feature_maps import ImageMaps, plot_maps
from search.figures.page import front_page
from search.figures.picture import plot_front
from search.figures.sensitivity_curves import plot_sensitivity
from search.figures.table import front_cells, front_markdown, front_table, write_front_csv

__all__ = [
    "ImageMaps",
    "front_cells",
    "front_markdown",
    "front_page",
    "front_table",
    "plot_agreement",
    "plot_front",
    "plot_maps",
    "plot_sensitivity",
    "write_front_csv",
]
