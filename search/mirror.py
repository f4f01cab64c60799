"""A folder at an address and its copy on this machine, kept alike: for a sweep whose driver may come back elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from search.errors import PlaceError, SweepError
from search.places import address_of, fetch, freshness, reaching

PUSH_S = 10.0
"""Seconds after which what has changed is written to the address."""

LOST_S = 3 * PUSH_S
"""Seconds without a sign of life after which a driver counts as gone."""

REST = 20
"""So many times as long as writing took nothing is written: a long journal must not fill the line."""

LEASE = "driver.json"
"""At the address: which driver keeps it, and a number that grows while it does."""

STAYS = ("*.lock", "*.draft", "*.left", "*.seen", "tune-*", "snapshots", "mlflow-offset.json", LEASE)
"""What does not travel with a folder: of this machine only, or stored file by file by those who write it."""

FIRST, LAST = ("mlflow-outbox.jsonl",), ("study.journal", "experiment.yaml")
"""Files that are written before and after the others: whoever goes on tells MLflow what the journal says, not less."""


class Copy:
    """A folder on this machine and the address that it is a copy of.

    A file travels when it is not what it was when both were last alike. One that has changed on both sides is fetched;
    what was here stays beside it as `*.left`. Where the last driver was here and its process died, what is here counts:
    it had written some of it to the address already.

    Args:
        folder: of a copy; see `search.places.path_of`.
    """

    def __init__(self, folder: Path) -> None:
        address = address_of(folder)
        if address is None:
            raise ValueError(f"{folder}: expected the copy of an address")
        self.folder, self.address = folder, address
        self._state = folder.with_name(f".{folder.name}.copy.json")
        self._lease = folder.with_name(f".{folder.name}.copy.lease")
        self._lock = FileLock(folder.with_name(f".{folder.name}.copy.lock"))

    def pull(self) -> None:
        """Fetch what has changed at the address, remove what is gone there.

        Raises:
            PlaceError: it cannot be read.
        """
        with self._alike() as known, reaching(self.address) as (system, root):
            ours, there, drafts = self.is_ours(), _listed(system, root), dict[str, Path]()
            try:
                for name, fresh in there.items():
                    path = self.folder / name
                    if not path.exists() or (known.get(name, (None, None))[0] != fresh and not ours):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        drafts[name] = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
                if drafts:  # many at a time, where the file system can
                    system.get([f"{root}/{name}" for name in drafts], list(map(str, drafts.values())))
                for name, draft in drafts.items():
                    path = self.folder / name
                    if _about(path) not in (None, known.get(name, (None, None))[1]):
                        path.replace(path.with_name(f"{path.name}.left"))
                    draft.replace(path)
                    known[name] = there[name], _about(path)
            finally:
                for draft in drafts.values():
                    draft.unlink(missing_ok=True)
            for name in set() if ours else known.keys() - there.keys():
                if _about(self.folder / name) == known.pop(name)[1]:
                    (self.folder / name).unlink(missing_ok=True)
            _prune(self.folder)

    def push(self) -> None:
        """Write what has changed here to the address.

        Raises:
            PlaceError: it cannot be written.
        """
        with self._alike() as known, reaching(self.address) as (system, root):
            files = dict(self._files())
            now = {name: _about(path) for name, path in files.items()}  # before they are read: appended lines go later
            changed = [name for name, here in now.items() if here not in (None, known.get(name, (None, None))[1])]
            for above in sorted({system._parent(f"{root}/{name}") for name in changed}):
                system.makedirs(above, exist_ok=True)
            for names in _in_order(changed):
                system.put([str(files[name]) for name in names], [f"{root}/{name}" for name in names])
            there = _listed(system, root) if changed else {}
            known.update({name: (there.get(name), now[name]) for name in changed})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other drivers of this machine away; the lock ends with the process that holds it.

        Raises:
            SweepError: there is one.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder.with_name(f".{self.folder.name}.driver.lock")).acquire(timeout=0)
        except Timeout:
            raise SweepError(f"sweep {self.address}: is running; another process on this machine keeps it") from None
        with lock:
            yield

    def lease(self) -> dict[str, Any] | None:
        """Return what the address says of its driver; None if it has none."""
        with reaching(self.address) as (system, root):
            try:
                found = json.loads(system.cat_file(f"{root}/{LEASE}"))
                return found if {"driver", "host", "pid"} <= found.keys() else None
            except (FileNotFoundError, ValueError, AttributeError):
                return None

    def take(self, lease: Mapping[str, Any]) -> None:
        """Have the address say that its driver is this one."""
        with reaching(self.address) as (system, root):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _write_json(self._lease, lease)
            system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/{LEASE}", json.dumps(lease).encode())

    def give_back(self) -> None:
        """Have the address say that it has no driver."""
        with reaching(self.address) as (system, root):
            system.rm(f"{root}/{LEASE}")
        self._lease.unlink(missing_ok=True)

    def is_ours(self) -> bool:
        """Return whether the address's driver is, or was, of this machine."""
        found = self.lease()
        try:
            return found is not None and json.loads(self._lease.read_text())["driver"] == found["driver"]
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if _travels(name) and path.is_file():
                yield name, path

    @contextmanager
    def _alike(self) -> Iterator[dict[str, tuple[list[str] | None, list[int] | None]]]:
        """Yield what files were when both sides were last alike, alone; keep what is made of it, whatever happens."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            known: dict[str, Any] = {}
            with suppress(OSError, ValueError, TypeError, AttributeError):
                known = {name: (there, here) for name, (there, here) in json.loads(self._state.read_text()).items()}
            before = dict(known)
            try:
                yield known
            finally:
                if known != before:
                    _write_json(self._state, known)


def pulled(path: Path) -> Path:
    """Return a file or folder; of a copy as it is at its address.

    Raises:
        PlaceError: the address cannot be read.
    """
    address = address_of(path)
    if address is not None:
        with reaching(address) as (system, root):
            folder = not system.isfile(root)
        Copy(path).pull() if folder else fetch(path)
    return path


def pushed(folder: Path) -> None:
    """Write to its address what has changed in a copy.

    Raises:
        PlaceError: the address cannot be written.
    """
    if address_of(folder) is not None:
        Copy(folder).push()


@contextmanager
def kept(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep a copy and its address alike while a driver runs, and other drivers away; other folders as they are.

    At the end everything is written. What cannot be written meanwhile is tried again.

    Raises:
        PlaceError: the address cannot be read, or at the end not be written.
        SweepError: another driver keeps it.
    """
    if address_of(folder) is None:
        yield
        return
    copy = Copy(folder)
    with copy.alone():
        copy.pull()
        keeper = _Keeper(copy, say)
        keeper.start()
        try:
            yield
        finally:
            keeper.end()


class _Keeper:
    """Holds the lease of a copy in one thread, however long a push takes, which another one does every few seconds."""

    def __init__(self, copy: Copy, say: Callable[[str], None]) -> None:
        self._copy, self._say, self._id, self._beat = copy, say, uuid.uuid4().hex, 0
        self._ended, self._quiet, self._written = threading.Event(), threading.Event(), threading.Event()
        self._pusher = threading.Thread(target=self._push, name="copy", daemon=True)
        self._holder = threading.Thread(target=self._hold, name="lease", daemon=True)

    def start(self) -> None:
        """Take the lease; wait whether its last holder gives a sign of life."""
        found = self._copy.lease()
        if found is not None and not self._copy.is_ours():  # if it is, its process is dead: the lock was free
            self._say(f"{self._copy.address} was kept by {found['host']}; waiting {LOST_S:.0f} s for a sign of life")
            end = time.monotonic() + LOST_S
            while time.monotonic() < end:
                time.sleep(LOST_S / 30)
                now = self._copy.lease()
                if now is None:
                    break
                if now != found:
                    raise SweepError(f"sweep {self._copy.address}: is running on {now['host']}, process {now['pid']}")
            self._copy.pull()  # it may have ended meanwhile
        self._write()
        self._pusher.start()
        self._holder.start()

    def end(self) -> None:
        """Write what is left, and give the lease back."""
        self._ended.set()
        self._quiet.set()
        self._pusher.join()
        try:
            self._check_lease()
            self._copy.push()
            self._let_go()
            self._copy.give_back()
        except PlaceError as error:
            raise PlaceError(f"{error}; what was not written there lies here and goes with the next resume") from None
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._written.set()
        self._holder.join()

    def _hold(self) -> None:
        while not self._written.wait(PUSH_S):
            with suppress(PlaceError, OSError):  # the next time
                try:
                    self._check_lease()
                except SweepError:  # which the end tells
                    self._quiet.set()
                    self._pusher.join(LOST_S)  # or what the driver writes when it is interrupted could still travel
                    while signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not self._ended.wait(PUSH_S):
                        pass  # as below `nohup`; Tune listens, once it runs
                    if not self._ended.is_set():
                        os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write()

    def _push(self) -> None:
        rest = PUSH_S
        while not self._quiet.wait(rest):
            start = time.monotonic()
            try:
                self._check_lease()
                self._copy.push()
            except SweepError:
                return
            except (PlaceError, OSError):
                pass  # the next time
            rest = max(PUSH_S, REST * (time.monotonic() - start))

    def _check_lease(self) -> None:
        found = self._copy.lease()
        if found is not None and found["driver"] != self._id:
            raise SweepError(f"sweep {self._copy.address}: {found['host']} has taken it over")

    def _write(self) -> None:
        self._beat += 1
        self._copy.take({"driver": self._id, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beat})


def _listed(system: Any, root: str) -> dict[str, list[str]]:
    """Return what file systems say of each file that travels, by its path below the root."""
    if not system.exists(root):
        return {}
    above = f"{system._strip_protocol(root).rstrip('/')}/"
    found = system.find(root, detail=True)
    names = {path.removeprefix(above): about for path, about in found.items()}
    return {name: freshness(about) for name, about in names.items() if _travels(name)}


def _in_order(names: list[str]) -> list[list[str]]:
    """Return what is written together, and after what."""
    first, last = [[name] for name in FIRST if name in names], [[name] for name in LAST if name in names]
    others = [name for name in names if name not in (*FIRST, *LAST)]
    return [*first, *([others] if others else []), *last]


def _travels(name: str) -> bool:
    """Return whether a file is part of the folder everywhere; names at an address may lead out of it."""
    parts = name.split("/")
    return {"", ".", ".."}.isdisjoint(parts) and not any(fnmatch(part, stays) for part in parts for stays in STAYS)


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)


def _about(path: Path) -> list[int] | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return [about.st_size, about.st_mtime_ns]


def _prune(folder: Path) -> None:
    """Remove a folder of which no file is left."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir()
        folder.rmdir()
