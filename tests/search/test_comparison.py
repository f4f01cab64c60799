"""Settings side by side: which cells a file means, what runs, and what the table says."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pruning import CRITERIA
from search import compare as comparing
from search.compare import Result, compare, read_results, table_lines
from search.comparison import load_cells
from search.config import load_experiment
from search.errors import ExperimentError, SweepError
from search.results import Metrics

BASE = {
    "name": "sides",
    "model": "tiny:network",
    "data": {"name": "digits", "options": {"size": 8, "channels": 1, "train_images": 300}},
    "baseline": {"epochs": 2, "learning_rate": 0.2, "batch_size": 15},
    "recipe": {"epochs": 1, "batch_size": 50},
    "search": {"groups": "inner", "allocation": {"name": "uniform", "options": {"rate": 0.5}}},
    "storage": "sweeps",
}


@pytest.fixture
def file(tmp_path):
    def write(comparison, **sections):
        path = tmp_path / "sides.yaml"
        path.write_text(yaml.safe_dump({**BASE, **sections, "compare": comparison}, sort_keys=False))
        return path

    return write


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_cell_for_every_row_value_and_seed(file):
    path = file(
        {
            "rows": {"one": {"search.criterion": "l1"}, "two": {"search.criterion": "l2", "recipe.epochs": 3}},
            "grid": {"search.groups": ["first", "second"], "recipe.batch_size": [50, 60]},
            "seeds": [0, 7],
        }
    )
    cells = load_cells(path)
    found = [
        (c.row, *c.values.values(), c.seed, c.experiment.search.criterion[0].name, c.experiment.recipe.epochs)
        for c in cells
    ]
    assert found == [
        (row, groups, size, seed, criterion, epochs)
        for row, criterion, epochs in (("one", "l1", 1), ("two", "l2", 3))
        for groups in ("first", "second")
        for size in ("50", "60")
        for seed in (0, 7)
    ]
    assert [c.experiment.search.seed for c in cells] == [0, 7] * 8
    assert [c.experiment.search.groups for c in cells[:3]] == [("first",)] * 3
    assert len({c.key for c in cells}) == 16


def test_a_row_can_use_the_seed(file):
    rows = {"random": {"search.criterion": {"name": "random", "options": {"seed": "{seed}"}}}}
    cells = load_cells(file({"rows": rows, "seeds": [3, 4]}))
    assert [cell.experiment.search.criterion[0].options for cell in cells] == [{"seed": 3}, {"seed": 4}]


def test_settings_change_the_cells(file):
    path = file({"grid": {"recipe.epochs": [1, 2]}, "seeds": [0, 1]})
    asked = ["compare.seeds=[5]", "compare.grid={search.groups: [first]}", "recipe.epochs=0"]
    (cell,) = load_cells(path, asked)
    assert (cell.seed, cell.experiment.search.groups, cell.experiment.recipe.epochs) == (5, ("first",), 0)


def test_paths_of_the_grid_start_at_the_file(file, tmp_path):
    (cell,) = load_cells(file({"grid": {"weights": ["a/b.th"]}}))
    assert cell.experiment.weights == tmp_path / "a/b.th"
    assert cell.values == {"weights": "b.th"}


def test_the_key_ignores_where_it_runs_and_nothing_else(file):
    def key(**sections):
        (cell,) = load_cells(file({}, **sections))
        return cell.key

    plain = key()
    assert key(storage="elsewhere", cache_gib=1, resources={"threads": 2}, tracking={"enabled": False}) == plain
    assert len({plain, key(recipe={"epochs": 2}), key(weights="x.th"), key(data="digits")}) == 4
    assert key(search={**BASE["search"], "thinned": []}) == plain
    assert key(search={**BASE["search"], "thinned": ["first"]}) != plain


def test_keys_are_those_that_results_were_kept_under(file):
    (cell,) = load_cells(file({}))
    assert cell.key == "6a1696da1f2d0296"


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        ({"rows": {}}, r"^compare.rows: "),
        ({"grid": {"recipe.epochs": []}}, r"^compare.grid.recipe.epochs: "),
        ({"seeds": [-1]}, r"^compare.seeds.0: "),
        ({"row": {}}, r"^compare.row: unknown key; did you mean 'rows'\?"),
        ({"grid": {"recipe.epoch": [1]}}, r"^recipe.epoch: unknown key; did you mean 'epochs'\?"),
        ({"rows": {"a": {"recipe.epochs.x": 1}}}, r"^compare: recipe.epochs.x: 'epochs' has no keys below it"),
        ({"grid": {"search.allocation": [{"name": "uniform", "options": None}]}}, r"^search.allocation.0.options: "),
    ],
)
def test_a_mistake_names_its_place(file, comparison, reason):
    with pytest.raises(ExperimentError, match=reason):
        load_cells(file(comparison))


def test_each_kind_of_file_is_refused_by_the_other_command(file, tmp_path):
    with pytest.raises(ExperimentError, match=r"compares fixed settings; run it with: prunesearch compare"):
        load_experiment(file({}))
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(BASE))
    with pytest.raises(ExperimentError, match=r"expected a section 'compare', found none; .* prunesearch run"):
        load_cells(plain)


def test_every_criterion_is_among_those_that_are_compared_block_by_block():
    cells = load_cells(Path(__file__).parents[2] / "experiments" / "criteria-blocks.yaml")
    compared = {CRITERIA.get(cell.experiment.search.criterion[0].name) for cell in cells}
    assert compared == {CRITERIA.get(name) for name in CRITERIA.names()}


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def finished(tmp_path_factory, local_ray):
    """A comparison of two rows and two seeds, one of which fails."""
    folder = tmp_path_factory.mktemp("compare")
    path = folder / "sides.yaml"
    rows = {"l1": {"search.criterion": "l1"}, "broken": {"search.groups": "nowhere"}}
    path.write_text(yaml.safe_dump({**BASE, "compare": {"rows": rows, "seeds": [0, 1], "test": True}}))
    said = []
    cells = load_cells(path)
    with pytest.raises(SweepError, match=r"^2 of 4 cells failed, the first is broken, seed [01]: "):
        compare(cells, said.append)
    return path, said


def test_what_fails_does_not_keep_the_others_from_their_results(finished):
    path, said = finished
    results = read_results(path.parent / "sweeps" / "sides")
    assert len(results) == 2
    table = (path.parent / "sweeps" / "sides" / "table.md").read_text()
    assert len(table.splitlines()) == 3
    assert any("broken, seed 0: failed: unknown channel group 'nowhere'" in line for line in said)


def test_a_cell_measures_before_after_and_the_test_images(finished):
    path, _ = finished
    for result in read_results(path.parent / "sweeps" / "sides").values():
        assert [metrics.epoch for metrics in result.history] == [0, 1]
        assert result.history[0].macs < result.baseline["macs"]
        assert 0 <= result.test <= 1
        assert 0 <= result.baseline["test"] <= 1


def test_a_second_run_does_what_is_missing_and_no_more(finished, monkeypatch):
    path, _ = finished
    said, ran = [], []
    original = comparing._finished
    monkeypatch.setattr(comparing, "_finished", lambda cells: ran.append([c.label for c in cells]) or original(cells))
    table = compare(load_cells(path, ["compare.rows={l1: {search.criterion: l1}}"]), said.append)
    assert ran == []
    assert said == [f"2 cells, 2 of them have a result in {table.parent}"]
    compare(load_cells(path, ["compare.rows={l1: {search.criterion: l1}}", "compare.seeds=[0, 1, 2]"]), said.append)
    assert ran == [["l1, seed 2"]]
    assert table.read_text().splitlines()[2].endswith("| 3 |")


def test_a_torn_line_is_left_out(tmp_path):
    whole = Result("a", {"macs": 1.0, "params": 1.0}, (Metrics(0, 0.5, 1.0, 2, 3),))
    (tmp_path / "cells.jsonl").write_text(whole.to_json() + "\n" + whole.to_json()[:30])
    assert read_results(tmp_path) == {"a": whole}
    comparing._end_line(tmp_path / "cells.jsonl")
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write(replace(whole, key="b").to_json() + "\n")
    assert set(read_results(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize("wrong", [{"baseline": {"macs": "9", "params": 1}}, {"test": "0.5"}, {"test": True}])
def test_a_line_with_what_is_no_number_is_left_out(tmp_path, wrong):
    whole = Result("a", {"macs": 1.0, "params": 1.0}, (Metrics(0, 0.5, 1.0, 2, 3),))
    lines = [whole.to_json(), json.dumps(json.loads(whole.to_json()) | {"key": "b"} | wrong)]
    (tmp_path / "cells.jsonl").write_text("\n".join(lines) + "\n")
    assert read_results(tmp_path) == {"a": whole}


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_says_mean_and_sample_deviation(file):
    cells = load_cells(file({"rows": {"A": {}, "B": {"search.criterion": "l2"}}, "seeds": [0, 1, 2], "test": True}))
    befores, afters, tests = [0.5, 0.6, 0.9], [0.7, 0.8, 0.85], [0.4, 0.5, 0.6]
    results = {}
    for cell, before, after, test in zip(cells, befores * 2, afters * 2, tests * 2, strict=True):
        history = (Metrics(0, before, 1.0, 30, 20), Metrics(1, after, 1.0, 30, 20))
        results[cell.key] = Result(cell.key, {"accuracy": 0.9, "test": 0.8, "macs": 60, "params": 80}, history, test)
    del results[cells[5].key]
    header, rule, first, second = table_lines(cells, results)
    assert header == ["row", "before", "after", "test", "change", "MACs", "parameters", "seeds"]
    assert len(rule) == len(header)
    expected = [
        f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
        for values in (befores, afters, tests)
    ]
    assert first == ["A", *expected, "−30.00 ± 10.00", "50.00", "25.00", "3"]
    assert second[0] == "B"
    assert second[-1] == "2"


def test_one_seed_has_no_deviation_and_latency_is_in_milliseconds(file):
    path = file({"grid": {"recipe.epochs": [1]}}, objectives=["accuracy", "macs", "latency_ms"])
    (cell,) = load_cells(path)
    baseline = {"accuracy": 0.9, "macs": 60, "params": 80, "latency_ms": 2.5}
    history = (Metrics(0, 0.5, 1.0, 30, 20, 1.25), Metrics(1, 0.75, 1.0, 30, 20, 1.25))
    header, _, row = table_lines([cell], {cell.key: Result(cell.key, baseline, history)})
    assert header == ["epochs", "before", "after", "MACs", "parameters", "ms", "baseline ms", "seeds"]
    assert row == ["1", "50.00", "75.00", "50.00", "25.00", "1.25", "2.50", "1"]


def test_a_search_is_no_cell(file, local_ray):
    with pytest.raises(SweepError, match=r"expected one policy, got a search over 'budget'"):
        compare(load_cells(file({}, search={"allocation": "uniform"})))
