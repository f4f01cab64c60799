"""Faults that are tried for real; at the end a table says what came of them."""

import json
import os
import random
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

import faults
import tiny

TABLE = pytest.StashKey[faults.Table]()


def pytest_addoption(parser):
    parser.addoption("--chaos-table", metavar="FILE", help="write what was provoked, and what came of it, as JSON")
    parser.addoption("--chaos-seed", type=int, help="of the moments that are drawn; else a new one, which is printed")


def pytest_configure(config):
    config.stash[TABLE] = faults.Table()


def pytest_report_header(config):
    if config.getoption("--chaos-seed", None) is None:
        config.option.chaos_seed = random.SystemRandom().randrange(10**6)
    return f"chaos: --chaos-seed {config.option.chaos_seed}"


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[TABLE].rows.values()
    if not rows:
        return
    terminalreporter.section("what breaks, and what then")
    for line in (("fault", "how it was provoked", "times", "lost", "doubled"), *(asdict(row).values() for row in rows)):
        terminalreporter.write_line(f"| {' | '.join(map(str, line))} |")
    if config.getoption("--chaos-table"):
        Path(config.getoption("--chaos-table")).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


@pytest.fixture(scope="session")
def table(pytestconfig):
    return pytestconfig.stash[TABLE]


@pytest.fixture
def rng(pytestconfig):
    """Draws moments and places."""
    return random.Random(pytestconfig.option.chaos_seed)


SECTIONS = {"recipe": {"epochs": 3, "batch_size": 50}, "tracking": {"enabled": True}, "resources": {"retries": 50}}
SEARCH = {"trials": 6, "seed": 2, "criterion": ["l1", "taylor", "hrank"]}


def asked(folder, **more):
    """Return the experiment of these tests, in a folder."""
    search = {**SEARCH, **more.pop("search", {})}
    return tiny.experiment(folder / "storage", **{**SECTIONS, **more, "search": search})


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The sweep that nothing happens to: its place, what it measured by trial, and the numbers of its front."""
    folder = tmp_path_factory.mktemp("undisturbed")
    place = faults.Place(folder, asked(folder))
    assert place.run() == 0, place.err
    front = {record.number for record in faults.Sweep.load(place.sweep).front}
    return place, faults.undisturbed(place.sweep), front


@pytest.fixture
def place(tmp_path, undisturbed):
    """A new place for the same experiment; its baseline is there already."""
    folder = tmp_path / "a place"
    new = faults.Place(folder, asked(folder))
    baselines = undisturbed[0].experiment.storage / "baselines"
    os.symlink(baselines, new.experiment.storage / "baselines")
    return new


@pytest.fixture
def kept(undisturbed, table):
    """Compares a place's sweep with the undisturbed one, and enters what came of a fault in the table."""

    def check(place, fault, how, times, **options):
        table.add(fault, how, times, faults.compare(place, *undisturbed[1:], **options))

    return check
