"""What is compared side by side: rows of settings, a grid of values, seeds. YAML in, one experiment a cell out."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pruning import explain
from search.config import COMPARE, Experiment, assign, parse_experiment, read_tree
from search.errors import ExperimentError
from search.sections import Section

SEED = "{seed}"
"""Stands for the seed among the values of a row."""


class Comparison(Section):
    """Which settings are compared: every row with every combination of the grid, with every seed.

    Attributes:
        rows: by name, settings by `a.b.c`.
        grid: values by `a.b.c`.
        seeds: each is `search.seed` once, and what `{seed}` stands for in rows; results are averaged over them.
        test: open the test images once for each cell, at its end. Nothing is chosen by them.
    """

    rows: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {"": {}}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    test: bool = False


@dataclass(frozen=True)
class Cell:
    """One network that is cut and fine-tuned.

    Attributes:
        row: name of the row.
        values: of the grid, by their place.
        seed: averaged over.
        experiment: with one point in its space.
    """

    row: str
    values: dict[str, str]
    seed: int
    experiment: Experiment
    test: bool

    @property
    def key(self) -> str:
        """16 hex digits of everything that the result depends on."""
        aside = ("name", "storage", "cache_gib", "tracking", "resources")
        # Results from before `thinned` was a key are those of experiments without any.
        unsaid = {"time_budget"} if self.experiment.search.thinned else {"time_budget", "thinned"}
        left_out = dict.fromkeys(aside, True) | {"search": unsaid}
        asked = self.experiment.model_dump(mode="json", exclude=left_out)
        text = json.dumps([asked, self.test], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Row, values and seed in words."""
        values = [f"{place.rpartition('.')[2]} {value}" for place, value in self.values.items()]
        return ", ".join(filter(None, [self.row, *values, f"seed {self.seed}"]))


def load_cells(path: Path, settings: Sequence[str] = ()) -> list[Cell]:
    """Read a file with a section `compare`, with `a.b=c` settings on top.

    Raises:
        ExperimentError: no such section, or a value that names its place.
    """
    tree = read_tree(path, settings)
    if COMPARE not in tree:
        instead = f"a sweep starts with: prunesearch run {path}"
        raise ExperimentError(f"experiment {path}: expected a section '{COMPARE}', found none; {instead}")
    try:
        comparison = Comparison.model_validate(tree.pop(COMPARE) or {})
    except ValidationError as error:
        raise ExperimentError(f"{COMPARE}.{explain(error, COMPARE, Comparison)}") from None
    cells = []
    for (row, own), values, seed in itertools.product(
        comparison.rows.items(), itertools.product(*comparison.grid.values()), comparison.seeds
    ):
        chosen = dict(zip(comparison.grid, values, strict=True))
        cell = copy.deepcopy(tree)
        for place, value in {**own, **chosen, "search.seed": seed}.items():
            assign(cell, place, _seeded(copy.deepcopy(value), seed), f"{COMPARE}: {place}")
        written = {place: _written(value) for place, value in chosen.items()}
        cells.append(Cell(row, written, seed, parse_experiment(cell, path.parent), comparison.test))
    return cells


def _seeded(value: Any, seed: int) -> Any:
    if isinstance(value, dict):
        return {key: _seeded(item, seed) for key, item in value.items()}
    if isinstance(value, list):
        return [_seeded(item, seed) for item in value]
    return seed if value == SEED else value


def _written(value: Any) -> str:
    if isinstance(value, dict):
        name, given = value.get("name"), value.get("options")
        options = ", ".join(f"{key}={item}" for key, item in given.items()) if isinstance(given, dict) else ""
        return (f"{name} ({options})" if options else str(name)) if name else json.dumps(value)
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)
