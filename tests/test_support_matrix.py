"""The table of networks that can be cut: what is said of each, and how it is found."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pruning import timm_names

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "support_matrix.py"


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("support_matrix", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CUT = {"name": "net", "seconds": 3, "groups": 4, "left": 0.3, "pinned_macs": 0.1, "why": "why", "masked": True}


@pytest.mark.parametrize(
    ("found", "verdict", "why"),
    [
        (CUT | {"trains": True, "exported": "yes"}, "passes", "why"),
        (CUT | {"trains": True, "left": 0.76}, "largely pinned", "why"),
        (CUT | {"trains": True, "error": "not within 9 s"}, "passes", "why"),
        (CUT | {"error": "AssertionError: 2 parameters have no gradient"}, "WRONG", "AssertionError: 2 parameters"),
        (CUT | {"masked": False, "error": "SurgeryError: differs"}, "WRONG", "SurgeryError: differs"),
        (CUT | {"error": "not within 9 s"}, "not finished", "not within 9 s"),
        ({"name": "net", "seconds": 3, "refused": "no group"}, "refused", "no group"),
        ({"name": "net", "seconds": 3, "error": "exit code -9"}, "not finished", "exit code -9"),
    ],
)
def test_a_verdict_follows_from_what_was_found(matrix, found, verdict, why):
    assert matrix.verdict(found) == verdict
    cells = matrix.row(found, None)
    assert cells[1] == verdict
    assert cells[5].startswith(why)


def test_an_error_of_the_other_engine_is_told_as_one(matrix):
    other = CUT | {"masked": False, "error": "IndexError"}
    assert matrix.row(CUT | {"trains": True, "exported": "yes"}, other)[-1] == "fails"
    assert matrix.counted([matrix.their_verdict(other), "passes", "passes"]) == "3 networks: 2 passes, 1 fails"


def test_what_was_found_last_counts(matrix, tmp_path):
    lines = [CUT, CUT | {"name": "other"}, CUT | {"seconds": 5}]
    (tmp_path / "ours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = matrix.read(tmp_path / "ours.jsonl")
    assert list(known) == ["net", "other"]
    assert known["net"]["seconds"] == 5


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_every_network_exists_once(matrix):
    names = [name for kind in matrix.networks().values() for name in kind]
    assert len(names) == len(set(names)) > 180
    assert {name for name in names if name.startswith("timm/")} <= set(timm_names())


@pytest.mark.slow
def test_a_network_is_cut_trained_and_exported_in_a_process_of_its_own():
    command = [sys.executable, str(SCRIPT.with_name("support_matrix_network.py")), "ours", "resnet18"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert (found["masked"], found["trains"], found["exported"], found["groups"]) == (True, True, "yes", 12)
    assert found["left"] < 0.3
