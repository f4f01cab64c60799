"""MLflow's user interface on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from search.errors import SweepError
from search.mirror import pulled
from search.passwords import without_password
from search.tracking.outbox import OUTBOX, first_start
from search.tracking.place import ENVIRONMENT, check_store, complaint, default_uri, store_uri

HOST = "127.0.0.1"


def ui_command(uri: str | None, port: int = 5000) -> list[str]:
    """Return the command that shows a store's runs to this machine alone; run it with `ENVIRONMENT` set.

    Args:
        uri: the store's address; with None the environment has it, in `MLFLOW_BACKEND_STORE_URI`.
        port: on this machine.
    """
    server = [sys.executable, "-m", "mlflow", "server", *([] if uri is None else ["--backend-store-uri", uri])]
    return [*server, "--host", HOST, "--port", str(port), "--workers", "1"]


def serve(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Show the runs of a sweep, or of all sweeps in a folder, until Ctrl-C.

    Raises:
        SweepError: there are no runs, the port is taken, or MLflow does not start.
    """
    uri = _uri(pulled(folder))
    if uri.startswith("http"):
        say(f"MLflow runs already: {without_password(uri)}")
        return
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise SweepError(f"port {port}: taken; choose another with --port")
    try:
        check_store(uri)
        page = _page(uri)
    except Exception as error:  # MLflow's, or of the database
        raise SweepError(complaint(uri, error)) from None
    say(f"MLflow: http://{HOST}:{port}{page}  (Ctrl-C ends it)")
    environment = {**ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}  # everybody sees a command
    process = subprocess.Popen(ui_command(None, port), env=environment, start_new_session=True)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        return
    if code:
        raise SweepError(f"MLflow: ended with exit code {code}")


def _page(uri: str) -> str:
    """Return the page of the runs; MLflow opens with another one."""
    from mlflow import MlflowClient

    from search.tracking.runs import runs_page

    experiments = [found for found in MlflowClient(uri).search_experiments() if found.name != "Default"]
    return runs_page(experiments[0]) if len(experiments) == 1 else "/#/experiments"


def _as_interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    server.wait()


def _uri(folder: Path) -> str:
    sweep = first_start(folder / OUTBOX)
    if sweep is not None:
        return store_uri(folder, sweep["uri"])
    if (folder / "mlflow.db").is_file():
        return default_uri(folder)
    raise SweepError(f"{folder}: expected a sweep's folder, or the one that holds the sweeps, found no runs in it")
