"""What has no room is gone without, and told in words that are the same each time."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from pruning import RankingError, save_weights
from search.unwritten import going_without, telling

FULL = os.strerror(errno.ENOSPC)
DEVICE = Path("/dev/full")


def no_room():
    raise OSError(errno.ENOSPC, FULL, "/somewhere/trial-7.draft")


def told(fault):
    lines = []
    with telling(lines.append), going_without("nothing is kept"):
        fault()
    return lines


def unwritable():
    raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")


def weights(tmp_path):
    (tmp_path / "a file").touch()
    save_weights(nn.Linear(1, 1), tmp_path / "a file" / "weights.safetensors")


def test_what_cannot_be_written_is_told_without_the_name_of_the_file(tmp_path):
    assert told(no_room) == told(unwritable) == [f"nothing is kept: {FULL}"]
    assert told(lambda: weights(tmp_path)) == [f"nothing is kept: {os.strerror(errno.ENOTDIR)}"]


@pytest.mark.skipif(not DEVICE.exists(), reason="there is no device that is always full")
def test_a_device_without_room_is_told_by_its_reason():
    assert told(lambda: DEVICE.write_text("x")) == [f"nothing is kept: {FULL}"]


def test_a_draft_that_is_not_whole_goes(tmp_path):
    draft = tmp_path / "a.draft"
    with going_without("nothing is kept", draft):
        save_file({"a": torch.zeros(3)}, draft)
    assert draft.exists()
    with going_without("nothing is kept", draft):
        no_room()
    assert not draft.exists()


def test_other_faults_are_raised_and_nothing_is_told_when_all_is_well():
    with pytest.raises(RankingError), going_without("nothing is kept"):
        raise RankingError("no such group")
    assert told(lambda: None) == []


def test_only_who_listens_hears_and_the_innermost_alone():
    outer, inner = [], []
    with telling(outer.append):
        with telling(inner.append), going_without("a"):
            no_room()
        with going_without("b"):
            no_room()
    with going_without("c"):
        no_room()
    assert (outer, inner) == ([f"b: {FULL}"], [f"a: {FULL}"])
