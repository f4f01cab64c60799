"""A folder of files that are made once for each key, whoever asks; where it is full, those used least recently go."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from search.config import Experiment
from search.counts import note
from search.unwritten import going_without

T = TypeVar("T")

SUFFIX = ".safetensors"
GIB = 2**30
DAY = 24 * 60 * 60
"""Seconds after which a draft or a lock that nobody touched was left by a process that died."""

NOT_KEPT = "the cache does not keep what is made"
"""What is told where there is no room."""

_OWN = (".draft", ".lock", ".sum")


def key_of(parts: list[Any]) -> str:
    """Return 16 hex digits of everything that a file's content depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cache:
    """Files by kind and key, shared by all processes that see the folder.

    Whoever makes a file holds its lock; the others wait and read. The system takes a lock from a process that dies. A
    file appears whole or not at all. What a reader refuses, because it was torn or is another version's, is made again,
    and so is what is not what was written. Where there is no room nothing is kept, and work goes on.

    Args:
        folder: gets a folder for each kind, one for the locks and one for checksums.
        limit_gib: how much all files may take. After each write those go that were used least recently, but none that
            is locked, such as the new one.
    """

    folder: Path
    limit_gib: float

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Return where a file lies, or will."""
        return self.folder / kind / f"{key}{suffix}"

    def once(self, path: Path, read: Callable[[Path], T], make: Callable[[Path], T]) -> T:
        """Return what lies at `path`, or make it.

        Args:
            path: see `path`.
            read: returns what the file holds; raises `ValueError` if it does not do.
            make: returns the same, new, and writes it to the path that it is given; what it does not write is not kept.
        """
        with self.locked(path):
            found = self.find(path, read)
            return self.fill(path, make) if found is None else found

    @contextmanager
    def locked(self, *paths: Path) -> Iterator[None]:
        """Hold the locks of some files, of which there may be none yet; wait for whoever holds one."""
        with ExitStack() as stack:
            for path in sorted(paths):  # always in the same order: no two processes wait for each other
                with going_without(NOT_KEPT):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lock = self._lock(path)
                    lock.parent.mkdir(exist_ok=True)
                    stack.enter_context(FileLock(lock))
                    with suppress(OSError):  # the folder was removed by hand
                        os.utime(lock)
            yield

    def find(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """Return what lies at `path`, and note that it was used; None where `read` refuses it or there is nothing."""
        try:
            found = read(path) if path.exists() and self._is_whole(path) else None
        except (OSError, ValueError):
            return None
        if found is not None:
            with suppress(OSError):  # gone since, or in a folder that is not ours
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # not every file system does so itself
            note(path.parent.name, path.stem, made=False)
        return found

    def fill(self, path: Path, make: Callable[[Path], T]) -> T:
        """Make what belongs at `path`, whose lock is held; see `once`."""
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
        try:
            made = make(draft)
            with going_without(NOT_KEPT, draft):
                if draft.exists():
                    self._keep_sum(path, draft)
                    draft.replace(path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        note(path.parent.name, path.stem, made=True)
        self.tidy()
        return made

    def tidy(self) -> None:
        """Remove what dead processes left, and files that were used least recently until the others are within limits.

        Whoever wants a file that goes makes it again.
        """
        files = [(path, about) for path in self.folder.glob("*/*") if (about := _about(path)) is not None]
        kept = sorted((used, path, size) for path, (used, size) in files if path.suffix not in _OWN)
        excess = sum(size for _, _, size in kept) - self.limit_gib * GIB
        for _, path, size in kept:
            if excess > 0 and _remove(self._lock(path), path, self._sum(path)):
                excess -= size
        dead = time.time() - DAY
        for path, (used, _) in files:
            if used < dead and path.suffix == ".draft":  # clocks jump: whoever still writes it holds the lock
                _remove(self._lock(path.with_name(path.name.rsplit(".", 2)[0])), path)
            elif used < dead and path.suffix == ".lock":
                _remove(path)

    def _lock(self, path: Path) -> Path:
        return self.folder / "locks" / f"{path.parent.name}-{path.name}.lock"

    def _sum(self, path: Path) -> Path:
        return self.folder / "sums" / f"{path.parent.name}-{path.name}.sum"

    def _keep_sum(self, path: Path, draft: Path) -> None:
        """Write down the checksum of what comes to lie at `path`, before it does."""
        self._sum(path).parent.mkdir(exist_ok=True)
        self._sum(path).write_text(_checksum(draft), encoding="ascii")

    def _is_whole(self, path: Path) -> bool:
        """Return whether a file is what was written; one without a checksum is."""
        known = self._sum(path)
        return not known.exists() or known.read_text(encoding="ascii") == _checksum(path)


def _about(path: Path) -> tuple[float, int] | None:
    """Return when a file was last used, and its bytes; None for what is no file, or is gone since."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return (max(about.st_atime, about.st_mtime), about.st_size) if stat.S_ISREG(about.st_mode) else None


def _remove(lock: Path, *files: Path) -> bool:
    """Remove files and their lock, unless somebody holds it; who waits for a lock that is gone makes a new one."""
    with suppress(OSError), FileLock(lock, timeout=0):
        for path in (*files, lock):
            path.unlink(missing_ok=True)
        return True
    return False


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_of(experiment: Experiment) -> Cache:
    """Return the cache of an experiment's storage."""
    return Cache(experiment.storage / "cache", experiment.cache_gib)
