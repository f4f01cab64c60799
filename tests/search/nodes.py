"""Ray nodes on this machine: processes beside one another, or hosts with a network of their own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from processes import wait_for
from ray._common.utils import get_default_ray_temp_dir

HERE = Path(__file__).parent
RAY = Path(sys.executable).with_name("ray")
HOST = ray.util.get_node_ip_address()
SEARCH = [sys.executable, "-m", "search"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
WITH_SYSTEM_TOOLS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


# ── Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def environment_with_token():
    """Return what every process of a cluster is started with: a token of its own."""
    paths = os.pathsep.join(map(str, [HERE.parents[1], HERE]))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**os.environ, **token, "PATH": WITH_SYSTEM_TOOLS, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def start_node(*options):
    """Return the command that runs a Ray node of one CPU until it is ended."""
    return words(RAY, "start", "--block", "--num-cpus", 1, "--disable-usage-stats", *options)


def head_at(address):
    host, _, port = address.partition(":")
    return start_node("--head", "--node-ip-address", host, "--port", port, "--include-dashboard", "false")


@contextmanager
def node(command, environment):
    """Run a Ray node until the end of the block."""
    process = subprocess.Popen(words(*command), env=environment, start_new_session=True, **QUIET)
    try:
        yield process
    finally:
        process.terminate()  # `ray start --block` ends what it has started
        process.wait(60)


def alive_nodes(address, environment, within=()):
    """Return address and name of each node of a cluster; none if it does not answer.

    Args:
        address: of the cluster.
        environment: with its token.
        within: a command that runs another one where the cluster is.
    """
    told = "*(f\"{node['NodeManagerAddress']} {node['NodeID']}\" for node in ray.nodes() if node['Alive'])"
    code = f"import ray; ray.init('{address}', log_to_driver=False); print({told}, sep=';')"
    asked = [*within, sys.executable, "-c", code]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    return [tuple(pair.split()) for pair in done.stdout.splitlines()[-1].split(";")] if done.returncode == 0 else []


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def words(*parts):
    return [str(part) for part in parts]


# ── hosts ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ALONE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child"]  # ends with whoever started it, killed or not
FIRST = "trap '' CHLD; exec sleep infinity"  # a first process: takes in the orphans, and nobody waits for them


@dataclass
class Host:
    """A machine as far as Linux makes one: its own network, name, processes, shared memory and folder of Ray.

    Attributes:
        name: its own.
        address: in the network of its switch.
        first: its first process, with which all others end.
        port: the end of its cable at the switch.
    """

    name: str
    address: str
    first: int
    port: str
    switch: list[str] = field(repr=False)
    started: ExitStack = field(repr=False)

    @property
    def within(self):
        """The command that runs another one on the host."""
        return _within(self.first, "--net", "--uts", "--ipc", "--pid", "--mount")

    def start(self, command, environment, **streams):
        """Start a command that runs until it ends, or the host does."""
        asked = [*self.within, *words(*command)]
        process = subprocess.Popen(asked, env=environment, start_new_session=True, **(streams or QUIET))
        self.started.callback(process.wait, 60)
        self.started.callback(process.kill)
        return process

    def cut(self):
        """Pull the cable."""
        self._plug("down")

    def heal(self):
        """Put the cable back."""
        self._plug("up")

    def destroy(self):
        """End all processes of the host at once."""
        os.kill(self.first, signal.SIGKILL)

    def _plug(self, state):
        subprocess.run([*self.switch, "ip", "link", "set", self.port, state], check=True)


class Network:
    """A switch that hosts are plugged into; it has no way out, so that any number of networks have equal addresses."""

    def __init__(self, started: ExitStack) -> None:
        self._started, self._hosts = started, 0
        self._switch = _within(_first_process(started, "--net", "--pid", "--fork"), "--net")
        _run(*self._switch, "ip", "link", "add", "switch", "type", "bridge")
        _run(*self._switch, "ip", "link", "set", "switch", "up")

    def host(self, *, hidden: Path | None = None) -> Host:
        """Plug in a new host.

        Args:
            hidden: a folder in whose place the host sees an empty one.
        """
        self._hosts += 1
        name, port, address = f"host{self._hosts}", f"port{self._hosts}", f"10.77.0.{self._hosts}"
        rays = Path(get_default_ray_temp_dir())
        rays.mkdir(exist_ok=True)
        own = [str(rays), "/dev/shm", *([] if hidden is None else [str(hidden)])]
        spaces = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc")
        first = _first_process(self._started, *spaces)
        host = Host(name, address, first, port, self._switch, self._started)
        _run(*self._switch, "ip", "link", "add", port, "type", "veth", "peer", "name", "cable", "netns", first)
        _run(*self._switch, "ip", "link", "set", port, "master", "switch", "up")
        for place in own:
            _run(*host.within, "mount", "-t", "tmpfs", "none", place)
        _run(*host.within, "hostname", name)
        _run(*host.within, "ip", "link", "set", "lo", "up")
        _run(*host.within, "ip", "address", "add", f"{address}/24", "dev", "cable")
        _run(*host.within, "ip", "link", "set", "cable", "up")
        _run(*host.within, "ip", "route", "add", "default", "dev", "cable")  # Ray asks which address leads outside
        return host


@contextmanager
def network():
    """A network for hosts, which all end with the block."""
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if not _which(tool)]:
        pytest.skip(f"hosts need {missing[0]} of Linux")
    if os.geteuid() or subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], capture_output=True).returncode:
        pytest.skip("hosts need namespaces, which are not allowed here")
    with ExitStack() as started:
        yield Network(started)


def _which(tool):
    return shutil.which(tool, path=WITH_SYSTEM_TOOLS)


def _within(process, *spaces):
    return words("nsenter", "--target", process, *spaces, "--")


def _run(*command):
    environment = {**os.environ, "PATH": WITH_SYSTEM_TOOLS}
    subprocess.run(words(*command), env=environment, check=True, capture_output=True)


def _first_process(started, *spaces):
    """Start the first process of new namespaces and return its number; it ends with `started`."""
    process = subprocess.Popen([*ALONE, *spaces, "sh", "-c", FIRST], start_new_session=True, **QUIET)

    def end():
        process.kill()
        process.wait(60)

    started.callback(end)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text().split(), 10, every=0.01)
    first = int(children.read_text().split()[0])
    wait_for(lambda: Path(f"/proc/{first}/comm").read_text() == "sleep\n", 10, every=0.01)
    return first
