"""The first contact with a tracking store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from runners.stores import connect

CONNECT = "from runners.stores import connect; connect('sqlite:///mlflow.db')"


def test_a_store_whose_creation_was_killed_is_created_again(tmp_path, monkeypatch):
    """MLflow takes a second for its tables, and refuses a database that has some of them."""
    process = subprocess.Popen([sys.executable, "-c", CONNECT], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.rglob("mlflow.db")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.chdir(tmp_path)
    assert not Path("mlflow.db").exists()
    client = connect("sqlite:///mlflow.db")
    client.create_experiment("one")
    assert {found.name for found in connect("sqlite:///mlflow.db").search_experiments()} >= {"one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
