"""Servers of this machine that tests start: PostgreSQL, and MLflow's."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from search.tracking.place import ENVIRONMENT

PASSWORD = "correct-horse-8c1f"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PostgreSQL:
    """A server on loopback that asks for a password; it does not run as root."""

    def __init__(self):
        self.port = free_port()
        self._programs = programs()
        self._as = {}
        if os.geteuid() == 0:
            known = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = known.get("postgres") or known["nobody"]
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        password = self._folder / "password"
        password.write_text(PASSWORD)
        for path in (self._folder, password):
            os.chown(path, self._as.get("user", -1), self._as.get("group", -1))
        trust = ["--auth=scram-sha-256", "--username=me", f"--pwfile={password}"]
        command = [self._programs / "initdb", "--no-sync", "--encoding=UTF8", *trust, self._folder / "data"]
        subprocess.run(command, check=True, cwd=self._folder, **self._as, **QUIET)
        self._process = None
        self.start()

    def start(self):
        settings = ["-h", "127.0.0.1", "-k", "", "-p", str(self.port), "-F"]  # -F: tests do not wait for the disk
        command = [self._programs / "postgres", "-D", self._folder / "data", *settings]
        self._process = subprocess.Popen(command, cwd=self._folder, start_new_session=True, **self._as, **QUIET)
        wait_for(lambda: self.run("SELECT 1"), "PostgreSQL")

    def run(self, statement):
        import psycopg

        place = {"host": "127.0.0.1", "port": self.port, "user": "me", "password": PASSWORD, "dbname": "postgres"}
        with psycopg.connect(**place, autocommit=True) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def stop(self):
        """End it at once, with all connections."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def create(self, name):
        """Make a database and return its address, without the password."""
        self.run(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://me@127.0.0.1:{self.port}/{name}"

    def remove(self):
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def programs():
    """Where PostgreSQL's programs are; skips the test where they are not."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("PostgreSQL is not installed")
    return folders[-1]


class MLflow:
    """MLflow's server on loopback, as `clusters/mlflow` starts it, without its users."""

    def __init__(self, folder, *, store, artifacts, port=None, **environment):
        port = port or free_port()
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "mlflow-server.log"
        places = [f"--backend-store-uri={store}", f"--artifacts-destination={artifacts}"]
        door = ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
        command = [sys.executable, "-m", "mlflow", "server", *places, *door]
        with self.log.open("wb") as log:
            output = {"stdout": log, "stderr": log}
            given = {**ENVIRONMENT, **os.environ, **environment}
            self._process = subprocess.Popen(command, cwd=folder, env=given, start_new_session=True, **output)
        try:
            wait_for(lambda: urllib.request.urlopen(f"{self.uri}/health").close(), "MLflow")
        except BaseException:
            self.remove()
            raise

    def remove(self):
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def wait_for(answers, name, patience_s=120):
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return answers()
        except Exception:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start") from None
            time.sleep(0.1)
