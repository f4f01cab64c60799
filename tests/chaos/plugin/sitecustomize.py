"""Ends its process at a named place; read by every Python process that finds this folder on its path.

The folder that FAULTS names has a JSON file for each fault: `place` (`module:function` or `module:Class.method`), `who`
(`worker` or `driver`), `how` (`before` the call, `after` it, or `torn`: when half of its bytes are written), `match`, a
part of the first argument, and `call`, which of these calls in a process. Whoever meets a fault takes its file away
first, so that it happens once.

Where FAKETIME_TIMESTAMP_FILE names a file with an offset in seconds, the sweep's own process has its clock from
libfaketime, and workers have theirs from here. Ray's own processes keep the true one: they hang when it jumps.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from functools import wraps
from pathlib import Path

FOLDER, CLOCK = os.environ.get("FAULTS"), os.environ.get("FAKETIME_TIMESTAMP_FILE")
IS_WORKER = any("default_worker" in part for part in sys.orig_argv)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def taken(file):
    """Whether this process is the one that meets the fault."""
    try:
        file.rename(file.with_suffix(".met"))
    except FileNotFoundError:
        return False
    return True


def faulty(function, file, fault):
    """Return a function that ends the process when its time has come."""
    calls = 0

    @wraps(function)
    def until_then(*args, **kwargs):
        nonlocal calls
        matches = fault["match"] in "".join(map(str, args[:1]))
        calls += matches
        how = fault["how"] if matches and calls == fault["call"] and file.exists() else ""
        if how == "torn" and taken(file):
            function(*(part[: len(part) // 2] if isinstance(part, bytes) else part for part in args), **kwargs)
            die()
        if how == "before" and taken(file):
            die()
        answer = function(*args, **kwargs)
        if how == "after" and taken(file):
            die()
        return answer

    return until_then


def arm(module):
    """Put the faults of a module in their places."""
    me = "worker" if IS_WORKER else "driver"
    for file in sorted(Path(FOLDER).glob("*.fault")):
        fault = json.loads(file.read_text())
        name, _, path = fault["place"].partition(":")
        if name == module.__name__ and fault["who"] == me:
            *owners, last = path.split(".")
            place = module
            for owner in owners:
                place = getattr(place, owner)
            setattr(place, last, faulty(getattr(place, last), file, fault))


class Armed(importlib.abc.Loader):
    """Loads a module as its own loader does, and arms it."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        arm(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds modules that have faults."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name not in self.names:
            return None
        self.names.remove(name)  # or it would be asked for ever
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = Armed(spec.loader)
        return spec


def moved(true):
    """Return the time in seconds that a worker believes."""
    return true() + int(Path(CLOCK).read_text())


if CLOCK:
    os.environ.pop("LD_PRELOAD", None)  # this process has the library; those that it starts do not
    if IS_WORKER:
        clock = time.time
        time.time, time.time_ns = lambda: moved(clock), lambda: int(1e9 * moved(clock))

if FOLDER:
    names = {json.loads(file.read_text())["place"].partition(":")[0] for file in Path(FOLDER).glob("*.fault")}
    for name in sorted(names & set(sys.modules)):
        arm(sys.modules[name])
    sys.meta_path.insert(0, Finder(names - set(sys.modules)))
