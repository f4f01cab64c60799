"""Cut and fine-tune one network a cell, side by side, and write a table of means and deviations."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pruning import MALFORMED, PruningError, evaluate, parse_json
from search.comparison import Cell
from search.errors import SearchError, SweepError
from search.inputs import Say, silent
from search.launching import check_resources, ray_session
from search.mirror import kept
from search.prepare import load_baseline, prepare, space_of
from search.reading import json_lines
from search.results import Metrics
from search.trial import run_trial
from search.units import percent
from search.worker import take_share

RESULTS, TABLE = "cells.jsonl", "table.md"


@dataclass(frozen=True)
class Result:
    """What one cell gave.

    Attributes:
        baseline: accuracy on validation and, where it was asked for, on test images; MACs and parameters; latency.
        history: after the cut and after every epoch.
        test: accuracy on the test images at the end, where it was asked for.
    """

    key: str
    baseline: dict[str, float]
    history: tuple[Metrics, ...]
    test: float | None = None

    def to_json(self) -> str:
        """Return one line."""
        history = [metrics.to_dict() for metrics in self.history]
        return json.dumps({"key": self.key, "baseline": self.baseline, "history": history, "test": self.test})

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Read what `to_json` wrote."""
        return cls.of(parse_json(line))

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Result:
        """Read what JSON says.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: not a result.
        """
        history = tuple(Metrics.of(metrics) for metrics in tree["history"])
        baseline, test = tree["baseline"], tree["test"]
        numbers = [*baseline.values(), 0 if test is None else test]
        right = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
        if not history or not right or not all(baseline.get(name, 0) > 0 for name in ("macs", "params")):
            raise ValueError(f"expected measurements, got {tree}")
        return cls(str(tree["key"]), baseline, history, test)


def compare(cells: Sequence[Cell], say: Say = silent, address: str = "local") -> Path:
    """Run the cells that have no result yet, several at a time, and write the table of all; return its file.

    Results go to `cells.jsonl` in the folder of the experiment's name, one a line as they come: a comparison that was
    interrupted, or gets more rows, goes on with what is missing.

    Raises:
        SweepError: a cell failed, e.g. as it leaves something to search; the others are run and written first.
        ExperimentError: more of a resource than this machine has.
    """
    first = cells[0].experiment
    folder = first.folder.resolve()
    check_resources(first, address)
    with kept(folder, say):
        return _compare(cells, folder, say, address)


def _compare(cells: Sequence[Cell], folder: Path, say: Say, address: str) -> Path:
    first, results = cells[0].experiment, read_results(folder)
    left = [cell for cell in cells if cell.key not in results]
    say(f"{len(cells)} cells, {len(cells) - len(left)} of them have a result in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    if left:
        _train_baselines(left, say)
        _end_line(folder / RESULTS)
        with ray_session(first, address), (folder / RESULTS).open("a", encoding="utf-8") as file:
            for number, (cell, result) in enumerate(_finished(left), start=1):
                if isinstance(result, str):
                    failures.append(f"{cell.label}: {result}")
                    say(f"[{number}/{len(left)}] {cell.label}: failed: {result}")
                    continue
                results[cell.key] = result
                file.write(result.to_json() + "\n")
                file.flush()
                say(f"[{number}/{len(left)}] {cell.label}: {_summary(result)}")
    table = write_table(folder / TABLE, cells, results)
    if failures:
        raise SweepError(f"{len(failures)} of {len(cells)} cells failed, the first is {failures[0]}")
    return table


def read_results(folder: Path) -> dict[str, Result]:
    """Return the results in a comparison's folder by key; a line that was torn by a crash is left out."""
    path = folder / RESULTS
    results = {}
    for tree in json_lines(path):
        try:
            result = Result.of(tree)
        except MALFORMED:
            continue
        results[result.key] = result
    return results


def _end_line(path: Path) -> None:
    """End a line that a crash tore, so that the next result gets a line of its own."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        path.write_bytes(content + b"\n")


def run_cell(cell: Cell) -> Result:
    """Cut and fine-tune the network of one cell.

    Raises:
        SearchError, PruningError: something in the experiment does not exist or does not fit.
    """
    take_share(cell.experiment.resources)
    inputs = prepare(cell.experiment)
    policy = space_of(inputs).only_policy()
    history: list[Metrics] = []
    outcome = run_trial(policy, inputs, lambda metrics, _: history.append(metrics))
    baseline, test = inputs.baseline.to_dict(), None
    if cell.test:
        test = evaluate(outcome.network, inputs.data.test, device=inputs.device).accuracy
        baseline["test"] = evaluate(inputs.network(), inputs.data.test, device=inputs.device).accuracy
    return Result(cell.key, baseline, tuple(history), test)


def _train_baselines(cells: Iterable[Cell], say: Say) -> None:
    """Train the baselines that are missing, here and once: two cells at a time would train the same one twice."""
    seen = set[str]()
    for cell in cells:
        if cell.experiment.weights is None:
            key = cell.experiment.model_dump_json(include={"model", "data", "baseline"}) + str(cell.seed)
            if key not in seen:
                seen.add(key)
                load_baseline(cell.experiment, say)


def _finished(cells: Sequence[Cell]) -> Iterable[tuple[Cell, Result | str]]:
    """Yield each cell with its result, or what went wrong, as it ends."""
    resources = cells[0].experiment.resources
    task = ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=resources.memory_bytes,
        max_retries=resources.retries,
    )(_attempt)
    waiting, running = list(cells), dict[Any, Cell]()
    while waiting or running:
        while waiting and len(running) < cells[0].experiment.search.concurrent:
            cell = waiting.pop(0)
            running[task.remote(cell)] = cell
        done, _ = ray.wait(list(running), num_returns=1)
        cell = running.pop(done[0])
        try:
            yield cell, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield cell, (str(error).strip() or type(error).__name__).splitlines()[-1]


def _attempt(cell: Cell) -> Result | str:
    try:
        return run_cell(cell)
    except (PruningError, SearchError) as error:
        return str(error)


def _summary(result: Result) -> str:
    first, last = result.history[0], result.history[-1]
    test = "" if result.test is None else f", test {percent(result.test, 2)}"
    macs = percent(last.macs / result.baseline["macs"])
    seconds = round(last.seconds)
    return f"{percent(first.accuracy, 2)} → {percent(last.accuracy, 2)}{test}, {macs} of the MACs, {seconds} s"


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_table(path: Path, cells: Sequence[Cell], results: dict[str, Result]) -> Path:
    """Write one row for each row and combination of the grid, averaged over the seeds, as Markdown; return the file."""
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in table_lines(cells, results)), encoding="utf-8")
    return path


def table_lines(cells: Sequence[Cell], results: dict[str, Result]) -> list[list[str]]:
    """Return header, rule and rows; a mean with the sample deviation over the seeds.

    `before` is after the cut and recalibration, `after` at the end of fine-tuning, both on validation images; `change`
    is the test accuracy less the baseline's in points; MACs and parameters are parts of the baseline's. All of them are
    in percent, latency in milliseconds a batch, with the baseline's beside it.
    """
    places = [place.rpartition(".")[2] for place in cells[0].values]
    named = any(cell.row for cell in cells)
    by_row: dict[tuple[str, ...], list[Result]] = {}
    for cell in cells:
        if cell.key in results:
            by_row.setdefault((*([cell.row] if named else []), *cell.values.values()), []).append(results[cell.key])
    columns: dict[str, Column] = {
        "before": lambda result: result.history[0].accuracy,
        "after": lambda result: result.history[-1].accuracy,
        **({"test": _test, "change": _change} if cells[0].test else {}),
        "MACs": lambda result: result.history[-1].macs / result.baseline["macs"],
        "parameters": lambda result: result.history[-1].params / result.baseline["params"],
    }
    if cells[0].experiment.measures_latency:
        columns |= {"ms": _latency, "baseline ms": lambda result: result.baseline["latency_ms"]}
    headers = [*(["row"] if named else []), *places, *columns, "seeds"]
    rows = [
        [*names, *(_mean(name, map(column, group)) for name, column in columns.items()), str(len(group))]
        for names, group in by_row.items()
    ]
    return [headers, ["---"] * len(headers), *rows]


Column = Callable[[Result], float]
"""From a result a part of one, or milliseconds."""


def _test(result: Result) -> float:
    assert result.test is not None
    return result.test


def _change(result: Result) -> float:
    return _test(result) - result.baseline["test"]


def _latency(result: Result) -> float:
    latency = result.history[-1].latency_ms
    assert latency is not None
    return latency


def _mean(column: str, measured: Iterable[float]) -> str:
    """Return a mean, of parts of one in percent: `91.23 ± 0.45`; without a deviation if all are the same."""
    values = [value if column.endswith("ms") else 100 * value for value in measured]
    mean = f"{statistics.fmean(values):{'+' if column == 'change' else ''}.2f}".replace("-", "−")
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.2f}" if spread > 0 else mean
