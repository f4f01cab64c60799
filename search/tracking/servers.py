"""Which MLflow servers may see the user's password: those that the user has named, not those of anybody's file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from search.errors import SweepError
from search.tracking.place import PASSWORD, without_password

LIST = Path("prunesearch") / "mlflow-servers"
"""In the user's configuration: one server a line."""

ADDRESS = "MLFLOW_TRACKING_URI"
_SECRETS = (PASSWORD, "MLFLOW_TRACKING_TOKEN")


def know(uri: str | None) -> None:
    """Remember the server of an address that the user has named."""
    server = _server(uri)
    if server and server not in _known():
        with suppress(OSError):
            _list().parent.mkdir(parents=True, exist_ok=True)
            with _list().open("a", encoding="utf-8") as file:
                file.write(f"{server}\n")


def refuse_stranger(uri: str | None, where: str) -> None:
    """Refuse a server that the user has not named, as long as there is a password that it would see.

    Args:
        uri: what a sweep's folder says.
        where: the sweep.

    Raises:
        SweepError: says how to name it.
    """
    server = _server(uri)
    if not server or server in (*_known(), _server(os.environ.get(ADDRESS))) or not _has_secret():
        return
    told = without_password(uri or "")
    raise SweepError(f"{where}: would show {server} your password of MLflow; if that is meant, set {ADDRESS}={told}")


def _server(uri: str | None) -> str | None:
    """Return scheme, host and port of an address; None of a file's."""
    parts = urlsplit(uri or "")
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{parts.scheme}://{host}" if host else None


def _has_secret() -> bool:
    return any(os.environ.get(name) for name in _SECRETS) or (Path.home() / ".mlflow" / "credentials").exists()


def _known() -> list[str]:
    try:
        return _list().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _list() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / LIST
