"""Which addresses of a tracking store there can be; no server is asked."""

from __future__ import annotations

import sqlite3

import pytest

from analysis.store import address
from analysis.store.load import load_design


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a sound database, an empty one, a damaged one and a folder."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("sound.db") as opened:
        opened.execute("CREATE TABLE things (name)")
    (tmp_path / "empty.db").touch()
    (tmp_path / "damaged.db").write_text("not a database")
    whole = (tmp_path / "sound.db").read_bytes()
    (tmp_path / "torn.db").write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:5000",
        "http://127.0.0.1:5000/some/path",
        "https://user:secret@tracking.example.org",
        "HTTP://[::1]:5000",
        "sqlite:///mlflow.db",
        "sqlite:///sound.db",
        "sqlite:///empty.db",
        "sqlite:///folder/with a space.db",
        "sqlite:///sound.db?timeout=60",
        "postgresql://host/name",
        "mysql+pymysql://user@host:3306/name",
    ],
)
def test_what_mlflow_can_reach_is_allowed(uri):
    assert address.wrong(uri) == ""


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("localhost:5000", "did you mean 'http://localhost:5000'?"),
        ("tracking.example.org:80/x", "did you mean 'http://tracking.example.org:80/x'?"),
        ("127.0.0.1:5000", "did you mean 'http://127.0.0.1:5000'?"),
        ("localhost", "http://HOST:PORT"),
        ("./mlruns", "folders of files are not supported"),
        ("file:./mlruns", "folders of files are not supported"),
        ("/tmp/mlruns", "folders of files are not supported"),
        ("databricks", "http://HOST:PORT"),
        ("ftp://host/x", "http://HOST:PORT"),
        ("http//localhost:5000", "http://HOST:PORT"),
        ("http:/localhost:5000", "http://HOST:PORT"),
        ("http://", "http://HOST:PORT"),
        ("http://localhost:99999", "0-65535"),
        ("http://localhost:http", "http://HOST:PORT"),
        ("http://[::1", "http://HOST:PORT"),
        ("http://localhost:5000 ", "without spaces"),
        ("http://local host:5000", "without spaces"),
        ("sqlite://mlflow.db", "three slashes"),
        ("sqlite:mlflow.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("sqlite:///folder", "three slashes"),
        ("sqlite:///nowhere/x.db", "there is no folder nowhere"),
        ("sqlite:///damaged.db", "move damaged.db away, and it is made again from the run folders"),
        ("sqlite:///torn.db", "move torn.db away"),
    ],
)
def test_anything_else_is_answered_with_what_is_allowed(uri, says):
    assert says in address.wrong(uri)


def test_a_reader_says_so_too(monkeypatch):
    monkeypatch.setenv(address.VARIABLE, "localhost:5000")
    with pytest.raises(LookupError, match="MLFLOW_TRACKING_URI: received 'localhost:5000'; allowed: did you mean"):
        load_design("x")


def test_no_message_shows_a_password():
    assert address.shown("https://user:secret@host/path") == "https://host/path"


def test_a_database_in_use_is_no_damaged_one():
    with sqlite3.connect("sound.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert address.wrong("sqlite:///sound.db") == ""
