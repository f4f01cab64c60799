"""Every picture of a sweep: the front as PNG, as a page that works offline, and as a table."""

from search.figures.page import front_page
from search.figures.picture import plot_front
from search.figures.table import front_cells, front_markdown, front_table, write_front_csv

__all__ = ["front_cells", "front_markdown", "front_page", "front_table", "plot_front", "write_front_csv"]
