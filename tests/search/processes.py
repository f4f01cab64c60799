"""Looks at the processes of this machine, and waits for them."""

import time
from pathlib import Path


def wait_for(what, seconds=120, *, every=0.1):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)


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
