"""Who may import what from outside; import-linter checks the layers inside, see pyproject.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORTERS = {
    "ray": (
        "search.driver",
        "search.watcher",
        "search.searcher",
        "search.trainable",
        "search.scheduler",
        "search.prepare",
        "search.launching",
        "search.compare",
        "search.sharing",
    ),
    "mlflow": ("search.tracking", "search.model_registry"),
    "optuna": (
        "search.study",
        "search.searcher",
        "search.space",
        "search.dimensions",
        "search.directions",
        "search.widths",
        "search.running_time",
        "search.figures",
        "search.journal",
        "search.database",
        "search.ledger",
        "search.pool",
        "search.horizon",
    ),
    "torch.fx": ("pruning.lineage",),
}


def imported_names(source: str) -> Iterator[str]:
    """Every absolute name that an import statement speaks of, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str, sources: dict[str, str]) -> set[str]:
    return {
        module
        for module, source in sources.items()
        if any(f"{name}.".startswith(f"{package}.") for name in imported_names(source))
    }


def all_sources() -> dict[str, str]:
    """The text of every module of the two packages, by name."""
    files = [file for package in ("pruning", "search") for file in (ROOT / package).rglob("*.py")]
    return {name_of(file): file.read_text(encoding="utf-8") for file in files}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", IMPORTERS)
def test_a_package_is_imported_only_where_it_belongs(package):
    found = importers(package, all_sources())
    strangers = {name for name in found if not f"{name}.".startswith(tuple(f"{home}." for home in IMPORTERS[package]))}
    assert not strangers


@pytest.mark.parametrize(
    "source",
    [
        "import torch.fx",
        "import torch.fx.proxy as proxy",
        "from torch import Tensor, fx",
        "from torch.fx import Node",
        "from torch.fx.node import Node",
        "def later():\n    from torch import fx",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert importers("torch.fx", {"module": source}) == {"module"}


@pytest.mark.parametrize("source", ["import torch", "import torch.fxtra", "from torch import nn", "import fx"])
def test_other_imports_are_not_mistaken(source):
    assert not importers("torch.fx", {"module": source})


def test_the_sources_are_found():
    assert {"pruning", "pruning.lineage.trace", "search.config"} <= set(all_sources())
