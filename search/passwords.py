"""Passwords in addresses: hidden from everybody who reads what a sweep writes and says."""

from __future__ import annotations

import re

PASSWORD = "MLFLOW_TRACKING_PASSWORD"
"""The environment's variable that has the password of an address that was kept without it; MLflow reads it, too."""

HIDDEN = "***"
_PASSWORDS = (
    r"(https?://[^/@:\s]*:)[^/?#\s]*(?=@)",
    r"(https?://)[^/?#:@\s]+(?=@)",  # a token
    r"((?<!http)(?<!https)://[^/@:\s]*:)[^@\s]*(?=@)",  # of a database; it may have a slash in it
    r"((?i:[?&](?:password|passwd|pwd|secret|token|sslpassword)=))[^&\s]*",
)


def without_password(uri: str) -> str:
    """Return an address as it may be shown, and kept; or a text with such addresses in it."""
    for password in _PASSWORDS:
        uri = re.sub(password, rf"\g<1>{HIDDEN}", uri)
    return uri
