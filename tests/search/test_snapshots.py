"""What a trial leaves to go on from: whole and its own, or as if there were none."""

import random

import pytest
import torch

from pruning import ModelSpec, Policy
from search.trainable import forget, read_snapshot, snapshot_of, write_snapshot
from search.unwritten import telling

STATE = {"network": {"weight": torch.arange(600.0)}, "metrics": {"epoch": 1}, "training": None}


def policy(seed=0):
    return Policy(model=ModelSpec(name="resnet20"), network="0" * 16, widths={"first": 3}, seed=seed)


@pytest.fixture
def snapshot(tmp_path):
    path = snapshot_of(tmp_path, 7)
    write_snapshot(STATE, path, policy())
    return path


def test_what_was_written_is_read(snapshot):
    found = read_snapshot(snapshot, policy())
    assert found["network"]["weight"].equal(STATE["network"]["weight"])
    assert (found["metrics"], found["training"]) == (STATE["metrics"], None)
    assert [path.name for path in snapshot.parent.iterdir()] == ["trial-7.pt"]


def test_another_policys_snapshot_is_none(snapshot):
    assert read_snapshot(snapshot, policy(seed=1)) is None


def test_there_may_be_none(tmp_path):
    assert read_snapshot(snapshot_of(tmp_path, 7), policy()) is None


def test_every_damage_is_noticed(snapshot):
    written, rng = snapshot.read_bytes(), random.Random(0)
    torn = [written[:length] for length in (0, 1, 32, 33, len(written) // 2, len(written) - 1)]
    flipped = []
    for place in rng.sample(range(len(written)), 50):
        content = bytearray(written)
        content[place] ^= 1 << rng.randrange(8)
        flipped.append(bytes(content))
    for content in (*torn, *flipped, rng.randbytes(len(written)), written + b"\0", bytes(len(written))):
        snapshot.write_bytes(content)
        assert read_snapshot(snapshot, policy()) is None


def test_without_a_place_to_write_the_trial_goes_on_and_says_so(tmp_path):
    (tmp_path / "snapshots").touch()  # a file, where a folder is to be made
    lines = []
    with telling(lines.append):
        for number in (7, 8):
            write_snapshot(STATE, snapshot_of(tmp_path, number), policy())
    assert len(lines) == 2
    assert len(set(lines)) == 1
    assert lines[0].startswith("trials start afresh where they are interrupted, for they cannot write snapshots: ")


def test_a_trial_that_has_ended_leaves_nothing_and_others_stay(snapshot, tmp_path):
    (snapshot.parent / "trial-7.4321.draft").touch()
    write_snapshot(STATE, snapshot_of(tmp_path, 77), policy())
    forget(tmp_path, 7)
    assert [path.name for path in snapshot.parent.iterdir()] == ["trial-77.pt"]
    forget(tmp_path, 7)
