"""Where MLflow keeps the runs, and how this program wants MLflow to behave."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from search.passwords import HIDDEN, PASSWORD, without_password

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",  # else the server asks the internet for a list of models
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the outbox tries again anyway; the default blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four idle processes
}


CONNECT_S = 10
"""Seconds in which a database has to answer."""


def set_environment() -> None:
    """Set what is not set yet; to be called before MLflow is first imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def default_uri(storage: Path) -> str:
    """Return the address of the SQLite file beside the sweeps."""
    return f"sqlite:///{(storage.resolve() / 'mlflow.db').as_posix()}"


def store_uri(folder: Path, uri: str | None) -> str:
    """Return where the runs of a sweep's folder go, given what the experiment says, or its copy in the folder."""
    return with_password(uri) if uri else default_uri(folder.resolve().parent)


def artifact_folder(uri: str) -> str | None:
    """Return where the artifacts of a SQLite store go: beside its file. A server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts").as_uri()


def with_password(uri: str) -> str:
    """Return an address that was kept without its password with that of the environment, if there is one."""
    known = os.environ.get(PASSWORD)
    return uri.replace(HIDDEN, quote(known, safe="")) if known else uri


def check_store(uri: str) -> None:
    """Raise, with SQLAlchemy's error, where a store's database does not answer now; MLflow tries for two minutes."""
    if uri.startswith(("postgresql", "mysql")):
        from sqlalchemy import create_engine

        engine = create_engine(uri, connect_args={"connect_timeout": CONNECT_S})
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def complaint(uri: str, error: BaseException) -> str:
    """Return in one line why a store cannot be used, and what may help."""
    advice = f"; its password is not kept, set {PASSWORD}" if HIDDEN in uri else ""
    return f"MLflow at {without_password(uri)}: {reason_of(error)}{advice}"


def reason_of(error: BaseException) -> str:
    """Return in one line why MLflow failed; of a failed connection the innermost reason: `Connection refused`.

    Files that some library looked for on the way are no reason.
    """
    reason, inner = str(getattr(error, "orig", error)), error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror and not isinstance(inner, FileNotFoundError):
            reason = inner.strerror
        inner = inner.__cause__ or inner.__context__
    text = without_password(" ".join(reason.split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
