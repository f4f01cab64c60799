"""A sweep as its reader sees it: MLflow's pages and the report, in a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import tiny
from mlflow import MlflowClient

from search import Sweep
from search.figures import Subject
from search.figures.trade_off import trade_off
from search.results import State
from search.tracking.place import ENVIRONMENT, set_environment

pytestmark = pytest.mark.browser

PATIENCE_MS = 30_000
POINTS = """place => Object.fromEntries(place.data.map((trace, number) =>
    [trace.name, place.querySelectorAll('.scatterlayer > .trace')[number].querySelectorAll('path.point').length]))"""
"""How many points the document has for each trace of a chart."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep that was run: some trials finished, some were stopped early."""
    set_environment()
    folder = tmp_path_factory.mktemp("sweeps")
    search = {"trials": 10, "scheduler": "pareto_asha", "start": "papers", "criterion": ["l1", "fpgm"]}
    recipe = {"epochs": 3, "learning_rate": 0.05, "batch_size": 50}
    asked = tiny.experiment(folder, search=search, recipe=recipe, tracking={"enabled": True})
    path = folder / "tiny.yaml"
    path.write_text(asked.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "search", "run", str(path)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    found = Sweep.load(asked.folder)
    assert {record.state for record in found.records} == {State.FINISHED, State.STOPPED}
    return found


def environment():
    paths = os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parent]))
    return {**ENVIRONMENT, **os.environ, "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def address(sweep):
    """Where `prunesearch ui` shows the sweep."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "search", "ui", str(sweep.folder), "--port", str(port)]
    server = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        said = server.stdout.readline()
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert time.monotonic() < end, "MLflow's server does not start"
                time.sleep(0.2)
        yield re.search(r"http://\S+", said)[0]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page, and in `asked` the addresses that it asked for, in `errors` what went wrong in it."""
    with browser.new_context(viewport={"width": 1600, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page


@pytest.fixture(scope="module")
def runs(sweep):
    """The runs by name."""
    client = MlflowClient(f"sqlite:///{sweep.folder.parent / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("prunesearch").experiment_id])
    return {run.info.run_name: run for run in found}


def follow(page, name):
    """Click on a link of the run's note, which opens another page, and return that."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name=name).click()
    opened.value.set_default_timeout(PATIENCE_MS)
    return opened.value


def points_of(sweep):
    """How many points the front's chart should have, by the name of the trace."""
    subject = Subject.of(sweep.experiment, sweep.records, sweep.baseline, sweep.widths)
    data = trade_off(subject)
    counted = {name: len(marks) for _, name, marks in data.others} | {"front": len(data.front), "baseline": 1}
    assert sum(counted.values()) == len(sweep.records) + 1
    return counted | ({f"best at ≤ 50 %: trial {data.best.number}": 1} if data.best else {})


def test_the_runs_page_shows_the_sweep_with_its_trials_below(sweep, address, runs, page):
    page.goto(address)
    link = page.get_by_role("link", name=sweep.experiment.name, exact=True)
    link.wait_for()
    assert page.get_by_role("link", name="trial-").count() == 0
    page.get_by_role("row").filter(has=link).locator("[col-id='attributes.`Run Name`'] button").click()
    trials = page.get_by_role("link", name="trial-")
    trials.first.wait_for()
    page.wait_for_function(f"document.querySelectorAll('a[href*=\"/runs/\"]').length >= {len(runs)}")
    assert sorted(trials.all_inner_texts()) == sorted(name for name in runs if name.startswith("trial-"))
    heads = page.get_by_role("columnheader").all_inner_texts()
    assert {"accuracy", "macs_share", "hypervolume", "criterion", "state", "front"} <= set(heads)
    for run in runs.values():
        shown = page.locator(f".ag-center-cols-container [row-id='{run.info.run_id}']").inner_text().split("\n")
        assert run.data.tags["state"] in shown
    assert all(url.startswith((address.partition("/#")[0], "data:", "blob:")) for url in page.asked)


def test_the_sweeps_run_leads_to_the_comparison_of_its_front(sweep, address, runs, page):
    parent = runs[sweep.experiment.name]
    page.goto(f"{address.partition('#')[0]}#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}")
    page = follow(page, "Compare the runs of the front")
    page.get_by_role("heading", name=f"Comparing {len(sweep.front)} Runs").wait_for()
    names = [name for name, run in runs.items() if run.data.tags.get("front") == "true"]
    assert len(names) == len(sweep.front)
    for name in names:
        page.get_by_role("cell", name=name).first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()


def test_mlflow_shows_the_report_among_the_artifacts(sweep, address, runs, page):
    parent = runs[sweep.experiment.name]
    page.goto(f"{address.partition('#')[0]}#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}")
    page = follow(page, "Report with all pictures")
    chart = page.frame_locator("iframe").locator("#front-1")
    chart.locator(".scatterlayer").wait_for()
    assert chart.evaluate(POINTS) == points_of(sweep)


def test_the_report_is_drawn_without_a_network(sweep, runs, page, tmp_path):
    client = MlflowClient(f"sqlite:///{sweep.folder.parent / 'mlflow.db'}")
    parent = runs[sweep.experiment.name].info.run_id
    path = Path(client.download_artifacts(parent, "figures/report.html", str(tmp_path)))
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.locator("#front-1 .scatterlayer").wait_for()
    assert page.locator("#front-1").evaluate(POINTS) == points_of(sweep)
    assert page.locator("#front table tr").count() == 1 + len(sweep.front)
    drawn = page.locator("section .js-plotly-plot .main-svg:first-child").count()
    assert drawn == page.locator(".js-plotly-plot").count() > 5
    curves = page.locator("#curves-1").evaluate("place => place.data.map(trace => trace.x.length)")
    epochs = sum(len(record.history) for record in sweep.records)
    assert sum(curves) - curves.count(1) >= epochs - len(sweep.records)
    assert (page.asked, page.errors) == ([path.as_uri()], [])


def test_the_pointer_on_a_point_names_its_trial(sweep, page):
    page.goto((sweep.folder / "report.html").as_uri())
    best = sweep.front[-1]
    place = page.locator("#front-1 .scatterlayer .trace").filter(has=page.locator("path.js-line")).locator("path.point")
    place.last.hover(force=True)
    said = page.locator("#front-1 .hoverlayer .hovertext")
    said.wait_for()
    assert f"trial {best.number}" in said.text_content()
