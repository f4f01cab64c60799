"""The hashes of all files of a folder, as `sha256sum -c SHA256SUMS` reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from search.errors import RegistryError

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> str:
    """Write the hashes of all files below a folder into it; return the hash of that list."""
    lines = [f"{digest}  {name}\n" for name, digest in _digests(folder).items()]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return _digest(folder / SUMS)


def check_sums(folder: Path, expected: str, place: str) -> None:
    """Refuse a folder that is not, file by file, the one whose list had the hash `expected`.

    Raises:
        RegistryError: a file that is missing, changed or too many; the line begins with `place`.
    """
    sums = folder / SUMS
    if not sums.is_file() or _digest(sums) != expected:
        raise RegistryError(f"{place}: {SUMS} is {'changed' if sums.is_file() else 'missing'}; not what was registered")
    listed = {
        name: digest
        for digest, _, name in (line.partition("  ") for line in sums.read_text(errors="replace").splitlines())
    }
    found = _digests(folder)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            how = "missing" if name not in found else "changed" if name in listed else "not in the list"
            raise RegistryError(f"{place}: {name} is {how}; not what was registered")


def _digests(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder but the list, by its path from there, sorted."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: _digest(path) for name, path in sorted(files.items()) if name != SUMS}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
