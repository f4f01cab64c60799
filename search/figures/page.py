"""A page that needs nothing else, not even a network: sections with charts, tables and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 0 auto;
  padding: 0 1rem 3rem; }
h1 { font-size: 1.6rem; margin: 1.6rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0; }
p { margin: .3rem 0; color: #555; max-width: 62rem; }
nav { position: sticky; top: 0; z-index: 10; background: #fff; border-bottom: 1px solid #ddd; padding: .5rem 0;
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
a { color: #0072B2; text-decoration: none; } a:hover { text-decoration: underline; }
section { margin-top: 2.2rem; scroll-margin-top: 4.5rem; }
section > h2 a { color: inherit; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.4rem; margin: 1rem 0; }
.facts div { line-height: 1.3; } .facts b { display: block; font-size: 1.35rem; font-weight: 600; }
.facts span { color: #555; font-size: .88rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.pair > div { min-width: 0; } .square { max-width: 42rem; }
.wide { overflow-x: auto; } .wide > div { min-width: 44rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .6rem; font-size: .92rem; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 1px solid #888; font-weight: 600; white-space: normal; vertical-align: bottom; }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 16rem; }
details { margin-top: .6rem; } summary { cursor: pointer; color: #0072B2; }
@media screen { .rows { max-height: 30rem; overflow: auto; } .rows th { position: sticky; top: 0; background: #fff; } }
@media screen and (max-width: 50rem) { nav { position: static; } section { scroll-margin-top: 0; } }
@media print {
  body { font-size: 11px; max-width: none; padding: 0; } nav, .modebar { display: none !important; }
  section { margin-top: 1.2rem; } section:not(#front), .js-plotly-plot, tr { break-inside: avoid; }
  .wide, .rows { overflow: visible; } .wide > div { min-width: 0; } .pair { grid-template-columns: 1fr 1fr; }
  table { font-size: 8.5px; } th, td { padding: .1rem .25rem; white-space: normal; }
}
"""

SCRIPT = """
function bringToTop(place, heights) {  // of parallel lines the one under the pointer, drawn by the last trace
  const show = (x, y) => Plotly.restyle(place, {x: [x], y: [y]}, [place.data.length - 1]);
  place.on('plotly_hover', event => {
    const line = heights[event.points[0].customdata];
    if (line) show(line.map((_, axis) => axis), line);
  });
  place.on('plotly_unhover', () => show([], []));
}
const each = act => document.querySelectorAll('.js-plotly-plot').forEach(act);
window.addEventListener('beforeprint', () => each(place =>
  Plotly.relayout(place, {width: place.closest('.pair') ? 345 : place.closest('.square') ? 560 : 690})));
window.addEventListener('afterprint', () => each(place => Plotly.relayout(place, {width: null, autosize: true})));
"""

HOVER = {"align": "left", "font": {"size": 12}, "bgcolor": "white", "bordercolor": "#888", "font_color": "#222"}
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser loads nothing from anywhere; plotly.js makes functions of its own text to draw with the graphics card."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: of its place, unique: `front`.
        heading: as text.
        caption: how to read it, as text.
        body: HTML.
    """

    name: str
    heading: str
    caption: str
    body: str = ""

    @property
    def html(self) -> str:
        """The section itself."""
        caption = f"<p>{escape(self.caption)}</p>\n" if self.caption else ""
        heading = f'<h2><a href="#{self.name}">{escape(self.heading)}</a></h2>'
        return f'<section id="{self.name}">\n{heading}\n{caption}{self.body}</section>\n'


def page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Return a whole page.

    Args:
        title: as text.
        lead: a line below it, as text.
        facts: numbers with what they are.
        sections: in their order; each has a link at the top.
    """
    links = "".join(f'<a href="#{section.name}">{escape(section.heading)}</a>' for section in sections)
    numbers = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script></head>\n"
        f'<body id="top"><h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n<div class="facts">{numbers}</div>\n'
        f'<nav>{links}<a href="#top">↑ top</a></nav>\n{"".join(section.html for section in sections)}'
        "</body></html>\n"
    )


def charts_html(name: str, charts: Sequence[go.Figure], layout: str = "", script: str | None = None) -> str:
    """Return charts below each other.

    Args:
        name: begins the names of their places: `front-1`.
        charts: one or more.
        layout: `pair` puts them side by side where there is room; `wide` are better moved sideways than drawn narrow;
            `square` are as wide as high.
        script: run when each is drawn; `{plot_id}` stands for its place's name.
    """
    config = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
    texts = []
    for number, figure in enumerate(charts, start=1):
        figure.update_layout(template="plotly_white", font={"size": 13}, hoverlabel=HOVER)
        if not figure.layout.margin.to_plotly_json():
            figure.update_layout(margin={"l": 70, "r": 20, "t": 30, "b": 60})
        place = f"{name}-{number}"
        text = figure.to_html(full_html=False, include_plotlyjs=False, div_id=place, config=config, post_script=script)
        texts.append(f"<div>{text}</div>\n")
    return f'<div class="charts {layout}">{"".join(texts)}</div>\n'


def table_html(headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: frozenset[int] = frozenset()) -> str:
    """Return a table of cells as text; those of some columns may be long."""
    kinds = [' class="text"' if number in texts else "" for number in range(len(headers))]

    def line(tag: str, cells: Sequence[str]) -> str:
        written = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(written)}</tr>"

    head, body = line("th", headers), "".join(line("td", row) for row in rows)
    return f'<div class="wide rows"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>\n'
