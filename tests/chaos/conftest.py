"""Faults that are tried for real; at the end a table says what came of them."""

import json
import random
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

import faults

TABLE, SEED = pytest.StashKey[faults.Table](), pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--chaos-table", metavar="FILE", help="write what was provoked, and what came of it, as JSON")
    parser.addoption("--chaos-seed", type=int, help="of the moments that are drawn; else a new one, which is printed")


def pytest_configure(config):
    seed = config.getoption("chaos_seed", None)
    config.stash[TABLE] = faults.Table()
    config.stash[SEED] = random.SystemRandom().randrange(10**6) if seed is None else seed


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[TABLE].rows.values()
    if not rows:
        return
    terminalreporter.section(f"what breaks, and what then, --chaos-seed {config.stash[SEED]}")
    for line in (("fault", "how it was provoked", "times", "lost", "doubled"), *(asdict(row).values() for row in rows)):
        terminalreporter.write_line(f"| {' | '.join(map(str, line))} |")
    if file := config.getoption("chaos_table", None):
        Path(file).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


@pytest.fixture(scope="session")
def table(pytestconfig):
    return pytestconfig.stash[TABLE]


@pytest.fixture
def rng(pytestconfig):
    """Draws moments and places."""
    return random.Random(pytestconfig.stash[SEED])


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Runs an experiment to which nothing happens, once; returns its place."""
    made = {}

    def run(**sections):
        key = json.dumps(sections, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            made[key] = faults.Place(folder, faults.asked(folder, **sections, tracking={"enabled": False}))
            assert made[key].run() == 0, made[key].err
        return made[key]

    return run


@pytest.fixture(scope="session")
def new_place(tmp_path_factory, reference):
    """Makes a new place for an experiment; its baseline is there already, where nothing else is said."""

    def make(*, trained=True, **sections):
        own = {name: value for name, value in sections.items() if name != "tracking"}
        known = reference(**own)
        folder = tmp_path_factory.mktemp("a place")
        new = faults.Place(folder, faults.asked(folder, **sections), undisturbed=known)
        if trained:
            shutil.copytree(known.experiment.storage / "baselines", new.experiment.storage / "baselines")
        return new

    return make


@pytest.fixture(scope="session")
def kept(table):
    """Compares a place's sweep with the undisturbed one, and enters in the table what came of a fault."""

    def check(place, fault, how, times, **options):
        table.add(fault, how, times, faults.compare(place, **options))

    return check
