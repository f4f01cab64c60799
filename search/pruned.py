"""The folder of a pruned network, as a command is given it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pruning import PRUNED_FILES, PrunedNetwork, load_pruned
from search.errors import SearchError


def read_pruned(folder: Path, trusted: Collection[str] = ()) -> PrunedNetwork:
    """Load what `prunesearch apply` wrote.

    Args:
        folder: a pruned network's.
        trusted: names of networks whose code may run; see `load_pruned`.

    Raises:
        SearchError: a folder that holds no pruned network.
        PruningError: a part that is damaged, or parts that do not belong together.
    """
    for name in PRUNED_FILES:
        if not (folder / name).is_file():
            raise SearchError(f"{folder}: expected a pruned network as `prunesearch apply` writes it, found no {name}")
    return load_pruned(folder, trusted=trusted)
