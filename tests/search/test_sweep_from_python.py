"""The way through from Python, as the README shows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import search
from search import Sweep
from search.errors import SweepError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the example prints, and the sweep that it leaves."""
    folder = tmp_path_factory.mktemp("here")
    asked = tiny.experiment(folder)
    file = folder / "tiny.yaml"
    file.write_text(asked.to_yaml(), encoding="utf-8")
    command = [sys.executable, str(ROOT / "experiments" / "from_python.py"), str(file), "3"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "search")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, Sweep.load(asked.folder)


def test_the_example_goes_from_a_file_to_a_pruned_network(ran):
    said, sweep = ran
    assert len(sweep.records) == 3
    choice = sweep.best(max_macs="80%")
    assert choice.explanation in said
    pruned = tiny.load_cut(sweep.folder / "pruned")
    assert pruned.policy == choice.policy
    assert f"MACs: {sweep.folder / 'pruned'}" in said.splitlines()[-1]


def test_a_named_trial_and_the_knee_can_be_taken(ran):
    _, sweep = ran
    assert sweep.best(trial=1).policy == sweep.records[1].policy
    assert sweep.best(knee=True).record in sweep.front
    with pytest.raises(SweepError, match=r"^trial 9: expected one of the sweep's 3, counted from 0$"):
        sweep.best(trial=9)
    with pytest.raises(SweepError, match=r"^knee: expected no trial beside it, got trial 1$"):
        sweep.best(knee=True, trial=1)
    with pytest.raises(SweepError, match=r"^max_flops: expected one of "):
        sweep.best(max_flops="50%")


def test_a_notebook_shows_the_front(ran):
    _, sweep = ran
    page = sweep._repr_html_()
    assert page.count("<tr>") == 1 + len(sweep.front)
    assert f"<p>3 trials: 3 finished. Baseline: {sweep.baseline['accuracy']:.2%}".replace("%", " %") in page


def test_settings_are_of_a_file(ran):
    with pytest.raises(SweepError, match=r"^settings: expected an experiment's file that they change"):
        Sweep.run(ran[1].experiment, {"search.trials": 2})


def test_the_package_offers_nothing_else():
    assert search.__all__ == ["Sweep"]
    with pytest.raises(AttributeError, match=r"^module 'search' has no attribute 'Swep'$"):
        search.Swep  # noqa: B018
