"""The command line: one command a step, one line and exit code 2 for a mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from pruning import PruningError
from search.cli import looking, networks, policies, reuse, sweeps
from search.errors import SearchError, SweepInterruptedError
from search.places import shown

__all__ = ["app", "main"]

app = typer.Typer(
    name="prunesearch",
    help="Search for channel-pruning policies: run a sweep, look at its front, take one policy home.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _part in (sweeps, policies, reuse, networks, looking):
    app.add_typer(_part.commands)

UsageError: Any = typer.BadParameter.__base__
"""A wrong command, option or argument; in which package it lives depends on typer's version."""


def main() -> NoReturn:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    sys.path.insert(0, str(Path.cwd()))  # `module:function` names may mean a file of the user's
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        _leave(f"error: {error.format_message().rstrip('.')}; see --help", 2)
    except SweepInterruptedError as interruption:
        _leave(str(interruption), 130)
    except (PruningError, SearchError) as error:
        _leave(f"error: {error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        _leave(f"error: {error.filename}: {error.strerror}", 2)
    if code:  # typer's word for Ctrl-C
        _leave("interrupted", code)
    sys.exit(0)


def _leave(line: str, code: int) -> NoReturn:
    print(shown(" ".join(line.split())), file=sys.stderr)
    sys.exit(code)
