"""Which servers may see the user's passwords: those that the user has named, not those of anybody's file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from search.errors import SweepError
from search.passwords import PASSWORD, without_password

LIST = Path("prunesearch") / "servers"
"""In the user's configuration: one server a line."""

ADDRESS = "MLFLOW_TRACKING_URI"
_SECRETS = (PASSWORD, "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD")


def know(*uris: str | None) -> None:
    """Remember the servers of addresses that the user has named."""
    new = {server for server in map(_server, uris) if server} - set(_known())
    with suppress(OSError):
        if new:
            _list().parent.mkdir(parents=True, exist_ok=True)
            with _list().open("a", encoding="utf-8") as file:
                file.writelines(f"{server}\n" for server in sorted(new))


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
    meant = f"set {ADDRESS}={without_password(uri or '')}" if server.startswith("http") else f"add it to {_list()}"
    raise SweepError(f"{where}: would show {server} a password of your environment; if that is meant, {meant}")


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
