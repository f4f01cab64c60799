"""Arguments that commands have in common, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.errors import SweepError

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", metavar="EXPERIMENT")]
ExperimentOrSweep = Annotated[
    Path, typer.Argument(help="Experiment file, or a sweep's folder: names weights and images.", metavar="EXPERIMENT")
]
SweepFolder = Annotated[Path, typer.Argument(help="A sweep's folder.", metavar="SWEEP")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set a value of the experiment, e.g. --set search.trials=50."),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live view, also in a terminal.")]
Address = Annotated[str, typer.Option(help="Ray cluster to join; 'local' starts one on this machine.")]


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)


def say_table(headers: list[str], rows: list[list[str]]) -> None:
    """Print columns, the first to the left, the others to the right, however narrow the terminal is."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        say("  ".join([first, *others]).rstrip())


def refuse_to_overwrite(output: Path, *, force: bool) -> None:
    """Refuse an output that exists, unless it is to be overwritten.

    Raises:
        SweepError: it exists.
    """
    if output.exists() and not force:
        raise SweepError(f"{output}: exists; name another file with --output, or pass --force")
