"""Where the tracking store is: which addresses there can be, and how patiently one is asked. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL = "sqlite:///mlflow.db"
ALLOWED = f"http://HOST:PORT, https://HOST, sqlite:///FILE.db, or unset for {LOCAL}"
_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")  # each may name its driver: mysql+pymysql
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, for one answer
}


def tracking_uri() -> str:
    """The tracking store: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.

    Named outright, because MLflow's own default turns into ./mlruns wherever such a folder is left over.
    """
    return os.environ.get(VARIABLE) or LOCAL


def set_defaults() -> None:
    """Have MLflow be quiet, and give up on a server in seconds instead of minutes. What the user has set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def shown(uri: str) -> str:
    """The address without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def database(uri: str) -> Path | None:
    """The file of a local store; None for a server."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def wrong(uri: str) -> str:
    """What is allowed in place of an address that can be none; "" where it can. Asks no server."""
    if not uri.startswith("sqlite:") and re.search(r"\s", uri):
        return f"{ALLOWED}, without spaces"
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError as error:
        return f"{ALLOWED} ({error})"
    if scheme == "sqlite":
        return _wrong_file(uri)
    if scheme in _DATABASES or (scheme in _SERVERS and host):
        return ""
    meant = f"did you mean 'http://{uri}'? " if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri) else ""
    return f"{meant}{ALLOWED}; MLflow's folders of files are not supported"


def _wrong_file(uri: str) -> str:
    import sqlite3

    file = database(uri)
    if file is None or file.name in ("", ":memory:") or file.is_dir():
        return "a file behind three slashes, sqlite:///FILE.db, or four where its path is absolute"
    if not file.absolute().parent.is_dir():
        return f"a file in an existing folder; there is no folder {file.parent}"
    if not file.exists():
        return ""
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0) as opened:
            opened.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:  # in use
        return ""
    except sqlite3.DatabaseError as error:
        return f"a sound SQLite database ({error}): move {file} away, and it is made again from the run folders"
    return ""
