"""Channel counts given as an option."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.errors import OptionError


def check_widths(model: str, option: str, widths: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the widths if there are `count` of them, each a whole number of at least one channel.

    Raises:
        OptionError: with the place, what was expected and what came.
    """
    fits = isinstance(widths, Sequence) and len(widths) == count
    if not fits or not all(isinstance(width, int) and width >= 1 for width in widths):
        raise OptionError(f"model '{model}', {option}: expected {count} whole numbers of at least 1, got {widths}")
    return tuple(widths)
