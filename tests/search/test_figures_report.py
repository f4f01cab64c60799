"""The page and the files that a sweep leaves behind."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import sweeps

from pruning import ModelSpec
from search.figures import report, report_page, write_report
from search.figures.papers import reported_on
from search.results import State
from search.sections import DataSpec

NAMES = ["front", "widths", "dimensions", "importance", "curves", "hypervolume", "surrogate", "latency"]
FOLDERS = {name: f"figures/{name}.png" for name in NAMES} | {"front": "front.png"}
OTHERS = {"table": "front.csv", "report": "report.html"}


class Page(HTMLParser):
    """Collects what a page shows, where its links go, and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.loaded, self.links, self.opened, self.ids = [], [], [], []
        self.texts, self.captions, self.policy = [], {}, ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loaded += [given[name] for name in ("src", "action", "data", "srcset") if name in given]
        self.loaded += [given["href"]] if tag == "link" else []
        self.links += [given["href"]] if tag == "a" else []
        self.ids += [given["id"]] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag == "section":
            self.section = given["id"]
        if tag not in ("meta", "br", "link", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if self.opened and self.opened[-1] not in ("script", "style"):
            self.texts.append(data)
            if self.opened[-2:] == ["section", "p"]:
                self.captions.setdefault(self.section, data)


def charts(html):
    """The traces of each chart by its place's id."""
    found = {}
    for start in re.finditer(r'Plotly\.newPlot\(\s*"([\w-]+)",\s*', html):
        found[start[1]], _ = json.JSONDecoder().raw_decode(html, start.end())
    return found


def subject(count=60, **more):
    points = reported_on(ModelSpec(name="resnet56"), DataSpec(name="cifar10"))
    return sweeps.subject(sweeps.records(count, latency=True, **more), reported=points)


@pytest.fixture(scope="module")
def found():
    return subject()


@pytest.fixture(scope="module")
def page(found):
    said = []
    html = report_page(found, said.append)
    assert said == []
    return html


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_whole_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.opened == []
    assert parsed.loaded == []
    assert page.count("plotly.js v") == 1
    own = re.sub(r"<script>/\*\*\s*\* plotly\.js v.*?</script>", "", page, flags=re.DOTALL)
    assert len(own) < len(page) - 3_000_000
    assert not re.search(r"https?://|@import|url\(", own.replace("http://www.w3.org/", ""))
    assert parsed.policy.startswith("default-src 'none';")
    assert "http" not in parsed.policy


def test_no_button_sends_a_chart_away(page):
    settings = re.findall(r'"showSendToCloud":\s*(\w+)', page.partition("</script>")[2])
    assert len(settings) == len(charts(page))
    assert set(settings) == {"false"}


def test_every_section_has_a_link_and_says_how_to_read_it(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    for name in (*NAMES, "failures"):
        assert f"#{name}" in parsed.links
        assert len(parsed.captions[name]) > 40
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)


def test_every_chart_names_trial_criterion_cost_and_accuracy(page):
    found = charts(page)
    assert {name.rpartition("-")[0] for name in found} == set(NAMES)
    for name, traces in found.items():
        if name.startswith("importance"):
            continue  # has no trials
        texts = [text for trace in traces for text in _flat(trace.get("hovertext", []))]
        trials = [text for text in texts if "<b>trial " in text and "</b> failed" not in text]
        assert trials, name
        for text in trials:
            assert re.search(
                r"<b>trial \d+</b>.*<br>criterion (l1|fpgm|taylor)<br>accuracy [\d.]+ %<br>MACs [\d.]+ M", text
            )


def _flat(texts):
    return [text for row in texts for text in (row if isinstance(row, list) else [row])]


def test_the_front_chart_has_as_many_points_as_there_are_trials(page, found):
    traces = {trace["name"]: trace for trace in charts(page)["front-1"]}
    finished = [record for record in found.records if record.state is State.FINISHED]
    beaten = {
        one.number
        for one in finished
        for other in finished
        if one.feasible
        and other.feasible
        and other is not one
        and other.metrics.accuracy >= one.metrics.accuracy
        and other.metrics.macs <= one.metrics.macs
    }
    feasible = sum(record.feasible for record in finished)
    assert {name: len(trace["x"]) for name, trace in traces.items() if not name.startswith("best")} == {
        "dominated": len(beaten),
        "stopped early": sum(record.state is State.STOPPED for record in found.records),
        "breaks a constraint": len(finished) - feasible,
        "papers: test images of CIFAR-10, long recipes": len(found.reported),
        "front": feasible - len(beaten),
        "baseline": 1,
    }
    for hollow in ("stopped early", "breaks a constraint"):
        assert traces[hollow]["marker"]["symbol"] == "circle-open"


def test_the_line_under_the_pointer_can_be_brought_to_the_top(page, found):
    traces = charts(page)["dimensions-1"]
    lines = [line for trace in traces for line in trace.get("customdata", [])]
    heights = json.loads(re.search(r"bringToTop\(document.getElementById\('dimensions-1'\), (\[\[.*?\]\])\);", page)[1])
    assert set(lines) == set(range(len(heights))) == set(range(len(found.finished)))
    for trace in traces[:-2]:
        axes = len(heights[0])
        first = trace["customdata"][0]
        assert trace["y"][:axes] == heights[first]
    assert traces[-1]["x"] == []


def test_the_page_shows_title_table_and_reasons_as_text(page, found):
    text = "".join(Page(page).texts)
    assert found.title in text
    assert "resnet56 <b>" not in page
    for word in (
        "93.00 %",
        "40.0 M",
        "fine-tuning: loss <nan> after epoch 1",
        "What the papers report",
        "hundreds of epochs",
    ):
        assert word in text
    assert f"best with at most half of the MACs: trial {found.best_at_half.number}" in text


def test_failed_trials_are_gathered_by_reason():
    records = sweeps.records(100, state=State.FAILED)
    records = [replace(record, error=None if record.number < 2 else "out of memory") for record in records]
    text = " ".join(Page(report_page(sweeps.subject(records))).texts)
    assert "98 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 86 more out of memory" in text
    assert "2 0, 1 no reason given" in text


# ── sweeps of every kind ─────────────────────────────────────────────────────────────────────────────────────────────


def written(found, folder):
    said = []
    files = write_report(found, folder, said.append)
    assert said == []
    assert {name: str(path.relative_to(folder)) for name, path in files.items()}.items() <= (FOLDERS | OTHERS).items()
    for path in files.values():
        assert path.stat().st_size > 0
    assert {path for path in folder.rglob("*") if path.is_file()} == set(files.values())
    return files


def test_a_sweep_leaves_every_picture_as_a_file(found, tmp_path):
    files = written(found, tmp_path)
    assert list(files) == ["table", *NAMES, "report"]
    for name in NAMES:
        assert files[name].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (sweeps.subject(sweeps.records(3)), {"front", "widths", "dimensions", "curves", "hypervolume", "surrogate"}),
        (sweeps.subject(sweeps.records(1)), {"front", "widths", "curves", "hypervolume"}),
        (sweeps.subject(sweeps.records(12, state=State.FAILED)), {"front"}),
        (sweeps.subject([]), {"front"}),
        (
            sweeps.subject(sweeps.records(30), sweeps.THREE),
            {"front", "dimensions", "importance", "curves", "surrogate"},
        ),
        (
            sweeps.subject(
                sweeps.records(9), ("accuracy", "latency_ms"), baseline={**sweeps.BASELINE, "latency_ms": None}
            ),
            {"curves", "surrogate"},
        ),
    ],
    ids=["three trials", "one trial", "only failures", "no trial", "no latency", "a baseline without latency"],
)
def test_what_cannot_be_drawn_is_left_out_with_a_sentence(found, names, tmp_path):
    files = written(found, tmp_path)
    assert set(files) - set(OTHERS) == names
    html = files["report"].read_text()
    captions = Page(html).captions
    assert {name.rpartition("-")[0] for name in charts(html)} == names
    for name in NAMES:
        assert captions[name].endswith((".", "None")), name  # "… got None" is what a baseline lacks


def test_a_picture_that_fails_is_told_of_and_stops_nothing(found, tmp_path, monkeypatch):
    def broken(_):
        raise ZeroDivisionError("division\nby zero")

    pictures = {picture.name: picture for picture in report.PICTURES}
    pictures["widths"] = replace(pictures["widths"], plot=broken)
    pictures["curves"] = replace(pictures["curves"], data=broken)
    pictures["latency"] = replace(pictures["latency"], charts=broken)
    monkeypatch.setattr(report, "PICTURES", tuple(pictures.values()))
    said = []
    files = write_report(found, tmp_path, said.append)
    assert said == [
        "note: picture widths.png is missing: ZeroDivisionError: division by zero",
        "note: the page lacks 'Learning curves': ZeroDivisionError: division by zero",
        "note: the page lacks 'Latency': ZeroDivisionError: division by zero",
    ]
    assert set(files) == {"table", "report", *NAMES} - {"widths", "curves"}
    html = files["report"].read_text()
    assert "This picture could not be drawn: ZeroDivisionError: division by zero" in html
    assert "widths-1" in charts(html)


def test_a_picture_of_an_earlier_time_does_not_stay(found, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "importance.png").touch()
    write_report(sweeps.subject(found.records[:3]), tmp_path)
    assert not (tmp_path / "figures" / "importance.png").exists()


def test_thousands_of_trials_fit_on_a_page_and_the_graphics_card_draws_them():
    html = report_page(subject(2500, epochs=20))
    assert len(html) < 9_000_000
    found = charts(html)
    assert {trace["name"]: trace["type"] for trace in found["front-1"]}["dominated"] == "scattergl"
    points = {name: sum(len(trace.get("x", [])) for trace in traces) for name, traces in found.items()}
    assert max(count for name, count in points.items() if not name.startswith(("front", "latency"))) < 12_000
    assert max(map(len, found.values())) < 40
