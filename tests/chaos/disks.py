"""Small disks that only the processes of a test see: tmpfs in a mount namespace that a process of its own holds."""

import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disks:
    """Mounts that the processes see that are started with `enter`."""

    def __init__(self, holder):
        self._holder = holder
        self.enter = ("nsenter", f"--target={holder}", "--mount")
        self.root = Path(f"/proc/{holder}/root")

    def do(self, *command):
        subprocess.run(list(map(str, (*self.enter, *command))), check=True, capture_output=True)

    def mount(self, place, kib):
        """Put an empty disk of so many KiB where a folder is."""
        self.do("mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", place)

    def resize(self, place, kib):
        self.do("mount", "-o", f"remount,size={kib}k", place)

    def fill(self, place):
        """Write until there is no room, and leave none."""
        self.do("sh", "-c", 'dd if=/dev/zero of="$0/filling" bs=4k 2>/dev/null; true', place)

    def lay(self, file, disk):
        """Have a file lie on a disk that is mounted elsewhere."""
        self.do("cp", file, disk / file.name)
        self.do("mount", "--bind", disk / file.name, file)

    def see(self, path):
        """Return where this process sees what the others see at a path."""
        return self.root / Path(path).relative_to("/")


@contextmanager
def disks():
    """Make a mount namespace; skips where that is not allowed."""
    commands = ("unshare", "nsenter", "mount")
    if (
        not all(map(shutil.which, commands))
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("mount namespaces are not allowed here")
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", "echo; exec sleep 86400"], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()  # the namespace is there
        yield Disks(holder.pid)
    finally:
        holder.kill()
        holder.wait()
