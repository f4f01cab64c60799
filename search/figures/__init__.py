"""Every picture: a sweep as files, page and table; how far criteria agree; what a cut costs; feature maps."""

from search.figures.agreement import plot_agreement
from search.figures.feature_maps import ImageMaps, plot_maps
from search.figures.page import table_html
from search.figures.report import FIGURES, FRONT, REPORT, TABLE, report_page, write_report
from search.figures.sensitivity_curves import plot_sensitivity
from search.figures.subject import Subject
from search.figures.table import front_cells, front_markdown, front_table, write_front_csv

__all__ = [
    "FIGURES",
    "FRONT",
    "REPORT",
    "TABLE",
    "ImageMaps",
    "Subject",
    "front_cells",
    "front_markdown",
    "front_table",
    "plot_agreement",
    "plot_maps",
    "plot_sensitivity",
    "report_page",
    "table_html",
    "write_front_csv",
    "write_report",
]
