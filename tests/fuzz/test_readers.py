"""Whatever a file holds: it is read, or refused in one line."""

import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import STEPS, changed, damaged
from readers import Reader, make_readers, written

from pruning import PruningError
from search.errors import SearchError

TREES = ("policy", "network", "pruned", "experiment", "sweep", "outbox", "results", "latencies")
NAMES = (*TREES, "checkpoint", "ranking", "checksums")
SHORT, LONG = 150, 6000
SLOW = {"pruned", "sweep", "network", "experiment"}
_root = TemporaryDirectory(prefix="fuzz")


@cache
def reader_of(name: str) -> Reader:
    return valid()[name]


@cache
def valid() -> dict[str, Reader]:
    return make_readers(Path(_root.name))


def outcome(reader: Reader, name: str, content: bytes) -> str:
    """Read a folder in which one file has another content; return the complaint, or nothing."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for other, valid_content in reader.contents.items():
            (Path(folder) / other).write_bytes(content if other == name else valid_content)
        try:
            reader.read(Path(folder))
        except (PruningError, SearchError) as error:
            text = str(error)
            assert text.strip()
            assert len(text.splitlines()) == 1
            assert len(text) <= 1000
            return text
        return ""


def check_bytes(name: str, inputs: int) -> None:
    reader = reader_of(name)
    contents = list(reader.contents.values())

    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(file=st.sampled_from(reader.names), steps=STEPS)
    def check(file, steps):
        outcome(reader, file, damaged(reader.contents[file], steps, contents))

    check()


def check_trees(name: str, inputs: int) -> None:
    reader = reader_of(name)
    trees = {file: reader.tree(file) for file in reader.trees}

    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(file=st.sampled_from(reader.trees), steps=STEPS)
    def check(file, steps):
        outcome(reader, file, written(file, changed(trees[file], steps)))

    check()


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(name):
    reader = reader_of(name)
    for file, content in reader.contents.items():
        assert outcome(reader, file, content) == ""


def test_the_readers_are_all_tried():
    assert set(valid()) == set(NAMES)
    assert {name for name, reader in valid().items() if reader.trees} == set(TREES)
    assert LONG * (len(NAMES) + len(TREES)) >= 100_000


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_read_or_refused_in_one_line(name):
    check_bytes(name, SHORT // (2 if name in SLOW else 1))


@pytest.mark.parametrize("name", TREES)
def test_changed_trees_are_read_or_refused_in_one_line(name):
    check_trees(name, SHORT // (2 if name in SLOW else 1))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_bytes_are_read_or_refused_in_one_line(name):
    check_bytes(name, LONG)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", TREES)
def test_many_changed_trees_are_read_or_refused_in_one_line(name):
    check_trees(name, LONG)
