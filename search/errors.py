"""The mistakes a user of the program can act on; the command line prints one line and exits with 2."""

from __future__ import annotations

from pruning import in_one_line


class SearchError(ValueError):
    """A mistake in what was asked of the search, told in one line."""

    def __init__(self, message: str = "") -> None:
        super().__init__(in_one_line(message))


class ExperimentError(SearchError):
    """An experiment file that cannot be read, or a value in it that cannot be."""


class SweepError(SearchError):
    """A sweep folder that exists, is missing, is finished, or holds no trial that succeeded."""


class SweepInterruptedError(SearchError):
    """A sweep that was stopped before its last trial; it can be resumed."""


class RegistryError(SearchError):
    """A registered network that is not there or not what was registered, or a registry that cannot be used."""


class PlaceError(SearchError):
    """An address that cannot be read or written, or is none."""
