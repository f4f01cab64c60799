"""Looks at the processes of this machine, and waits for them."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def wait_for(what, seconds=120, *, every=0.1):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)


AGENTS = ("ray::Dashboard", "ray::RuntimeEnv")
"""Processes of Ray that take a minute to see that they are alone."""


def has_ended(leader):
    """Whether all processes of a session have ended; Ray's agents are ended if nothing else is left."""
    left = session(leader)
    alone = all(name.startswith(AGENTS) for name in left.values())
    for process in left if alone else ():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return alone


def session(leader):
    """Return the processes of a session that still run: number and name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rpartition(")")[::2]
        except OSError:  # gone meanwhile
            continue
        state, _, _, its_session = fields.split()[:4]
        if int(its_session) == leader and state != "Z":
            found[int(stat.parent.name)] = name.partition("(")[2]
    return found
