"""Files and folders at an address, `s3://bucket/sweeps`, by way of their copies on this machine.

The copy of an address is a path that says which address it is of. Everybody works on paths; who reads one that may be a
copy fetches it first, who has written one stores it. Of a path that is no copy, that does nothing.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from search.errors import PlaceError

COPIES = "prunesearch-copies"
"""The folder that holds all copies; below it the scheme, and the rest of the address."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_COPY = re.compile(rf"[^\s'\"]*/{COPIES}/([\w+.-]+)/")
_HINTS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Schemes whose file system comes with an extra of this program."""

_FRESHNESS = ("ETag", "etag", "generation", "size", "mtime", "LastModified", "updated", "created", "last_modified")
"""Under which names file systems say what changes with a file."""


def is_address(text: str) -> bool:
    """Return whether a text names an address, `scheme://…`, rather than a path."""
    return _ADDRESS.match(text) is not None


def path_of(text: str | Path) -> Path:
    """Return the path that a text names: of an address its copy's, of `file://` and all else the path itself.

    Raises:
        PlaceError: an address with a password or with steps upwards, or one that is made of several.
    """
    found = _ADDRESS.fullmatch(str(text))
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme in ("file", "local"):
        return Path(rest)
    where = rest.split("/", maxsplit=1)[0]
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if ":" in where.rpartition("@")[0]:
        raise PlaceError(f"{scheme}://…@{where.rpartition('@')[2]}: expected no password in it; the environment has it")
    if "::" in rest or ".." in parts or not parts:
        raise PlaceError(f"{text}: expected one address, scheme://bucket/folder")
    return _copies().joinpath(scheme, *parts)


def address_of(path: Path) -> str | None:
    """Return the address that a path is a copy of; None of other paths."""
    parts = PurePosixPath(path.as_posix()).parts
    if COPIES not in parts:
        return None
    scheme, *rest = parts[parts.index(COPIES) + 1 :] or ("",)
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def is_there(path: Path) -> bool:
    """Return whether there is a file or folder; of a copy at its address.

    Raises:
        PlaceError: the address cannot be read.
    """
    address = address_of(path)
    if address is None:
        return path.exists()
    with reaching(address) as (system, root):
        return bool(system.exists(root))


def shown(text: str) -> str:
    """Return a text with addresses in place of the paths of their copies."""
    return _COPY.sub(r"\1://", text)


def fetch(path: Path) -> Path:
    """Have a file here as it is at its address, and return its path; one that is no copy is returned as it is.

    Raises:
        PlaceError: the address cannot be read. What it does not have is no mistake: then it is not here either.
    """
    address = address_of(path)
    if address is None:
        return path
    seen = _seen(path)
    with reaching(address) as (system, root):
        if not system.isfile(root):
            return path
        fresh = json.dumps(freshness(system.info(root)))
        if path.exists() and seen.exists() and seen.read_text(encoding="utf-8") == fresh:
            return path
        with draft_of(path) as draft:
            system.get_file(root, str(draft))
            draft.replace(path)
        seen.write_text(fresh, encoding="utf-8")
    return path


def store(path: Path) -> None:
    """Write a file that was made here to the address that its path is a copy of.

    Raises:
        PlaceError: the address cannot be written.
    """
    address = address_of(path)
    if address is not None:
        with reaching(address) as (system, root):
            system.makedirs(system._parent(root), exist_ok=True)
            system.put_file(str(path), root)


def discard(path: Path) -> None:
    """Remove a file, here and at the address that it is a copy of; there may be none.

    Raises:
        PlaceError: the address cannot be written.
    """
    address = address_of(path)
    for file in (path, _seen(path)):
        file.unlink(missing_ok=True)
    if address is not None:
        with reaching(address) as (system, root):
            if system.exists(root):
                system.rm(root)


def freshness(about: Mapping[str, Any]) -> list[str]:
    """Return what changes with a file, of all that a file system says of it."""
    return [str(about[name]) for name in _FRESHNESS if about.get(name) is not None]


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a place beside a path, on the same disk; what is left there at the end goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def reaching(address: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of an address and the path in it; errors of any service become one of ours.

    Raises:
        PlaceError: in one line, why the address cannot be read or written.
    """
    try:
        yield fsspec.core.url_to_fs(address, use_listings_cache=False)
    except PlaceError:
        raise
    except ImportError as error:
        extra = _HINTS.get(address.partition(":")[0])
        hint = f"; pip install 'prunesearch[{extra}]'" if extra else ""
        raise PlaceError(f"{address}: {error}{hint}") from None
    except Exception as error:  # each service has its own kinds
        raise PlaceError(f"{address}: {_reason(error)}") from None


def _seen(path: Path) -> Path:
    """Return where it is noted which of the address's files was fetched."""
    return path.with_name(f".{path.name}.seen")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def _copies() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / COPIES
