"""What was made and what was found is added up over processes."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from search.counts import Counts, append_events, counting, note, read_events
from search.unwritten import telling

R, A = "rankings", "auxiliary"


def test_what_was_made_meanwhile_was_not_found():
    counts = Counts([(R, "a", False), (R, "b", True), (R, "b", False), (R, "c", True), (R, "c", True), (A, "a", False)])
    assert (counts.made(R), counts.found(R)) == (["b", "c", "c"], ["a"])
    assert (counts.made(A), counts.found(A)) == ([], ["a"])
    assert json.loads(counts.to_json()) == {
        R: {"made": ["b", "c", "c"], "found": ["a"]},
        A: {"made": [], "found": ["a"]},
    }


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], "none"),
        ([(R, "a", True)], "1 ranking made"),
        ([(R, "a", False), (R, "b", False)], "2 rankings found in the cache"),
        ([(R, "a", True), (R, "b", True), (R, "c", False)], "2 rankings made, 1 found in the cache"),
        ([(R, "a", True), (A, "a", True), (A, "b", True)], "1 ranking made; 2 sets of heads trained"),
        ([(A, "b", False), ("unheard of", "a", True)], "1 set of heads found in the cache"),
    ],
)
def test_the_line_says_how_many(events, text):
    assert str(Counts(events)) == text


def test_only_who_counts_hears_and_the_innermost_alone():
    outer, inner = Counts(), Counts()
    note(R, "a", made=True)
    with counting(outer.events.append):
        note(R, "b", made=True)
        with counting(inner.events.append):
            note(R, "c", made=True)
        note(R, "d", made=False)
    note(R, "e", made=True)
    assert (outer.events, inner.events) == ([(R, "b", True), (R, "d", False)], [(R, "c", True)])


def test_what_others_made_is_read_back_but_a_torn_line(tmp_path):
    path = tmp_path / "shared.jsonl"
    assert read_events(path) == []
    append_events(path, [])
    assert not path.exists()
    append_events(path, [(R, "a", True)])
    append_events(path, [(R, "b", False), (A, "c", True)])
    with path.open("a") as file:
        file.write('["rankings", "d"')
    assert read_events(path) == [(R, "a", True), (R, "b", False), (A, "c", True)]


@pytest.mark.parametrize("tail", ['["rankings", "d"', "\0\0\0", '["rankings", "d", true]'])
def test_what_comes_behind_a_torn_line_is_read(tmp_path, tail):
    path = tmp_path / "shared.jsonl"
    append_events(path, [(R, "a", True)])
    with path.open("a") as file:
        file.write(tail)
    append_events(path, [(R, "b", False)])
    assert {(R, "a", True), (R, "b", False)} <= set(read_events(path))


def test_without_a_place_to_write_work_goes_on_and_one_hears_of_it(tmp_path):
    lines = []
    (tmp_path / "a file").touch()
    with telling(lines.append):
        append_events(tmp_path / "a file" / "shared.jsonl", [(R, "a", True)])
    assert [line.partition(":")[0] for line in lines] == ["shared.jsonl lacks some of what was made or found"]


def test_nothing_is_lost_where_several_write(tmp_path):
    path = tmp_path / "shared.jsonl"

    def write(number):
        for part in range(20):
            append_events(path, [(R, f"{number}-{part}", True)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(read_events(path))) == 80
