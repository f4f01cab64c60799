"""Arguments that commands have in common, and how they print."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import typer

from search.errors import PlaceError, SweepError
from search.mirror import pulled
from search.places import is_address, path_of, shown

WIDTH = 100
"""Letters in a line of text."""


def given(text: str) -> Path:
    """Return the path that an argument names; of an address that of a copy, fetched now."""
    try:
        return pulled(path_of(text))
    except PlaceError as error:
        raise typer.BadParameter(str(error)) from None


def here(text: str | Path) -> Path:
    """Return a path on this machine, for what is written."""
    if isinstance(text, str) and is_address(text):
        raise typer.BadParameter(f"expected a path on this machine, got {text}")
    return Path(text)


ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", metavar="EXPERIMENT", parser=given)]
ExperimentOrSweep = Annotated[
    Path,
    typer.Argument(
        help="Experiment file, or a sweep's folder: names weights and images.", metavar="EXPERIMENT", parser=given
    ),
]
SweepFolder = Annotated[Path, typer.Argument(help="A sweep's folder, or its address.", metavar="SWEEP", parser=given)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set a value of the experiment, e.g. --set search.trials=50."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE:FUNCTION",
        help="Own network that a policy may name: its code runs. That of an experiment given here is trusted.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live view, also in a terminal.")]
Address = Annotated[str, typer.Option(help="Ray cluster to join; 'local' starts one on this machine.")]


def say(line: str) -> None:
    """Print a line now."""
    print(shown(line), flush=True)


def say_table(headers: list[str], rows: list[list[str]], left: Collection[int] = (0,)) -> None:
    """Print columns, however narrow the terminal is; those whose numbers are in `left` to the left."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        say("  ".join(cells).rstrip())


def say_lines(lines: Mapping[str, str]) -> None:
    """Print texts behind what they are about, folded to the width of a terminal."""
    margin = max(map(len, lines)) + 2
    for name, text in lines.items():
        first = name.ljust(margin)
        say(textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * margin, break_on_hyphens=False))


def refuse_to_overwrite(output: Path, *, force: bool) -> None:
    """Refuse an output that exists, unless it is to be overwritten.

    Raises:
        SweepError: it exists.
    """
    if output.exists() and not force:
        raise SweepError(f"{output}: exists; name another file with --output, or pass --force")
