"""A tracking server that is down, dies, or answers nonsense, beside real sweeps: nothing that trains waits for it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.store.load import load_curves, load_design, load_runs
from analysis.store.stratum import Stratum
from runners.cli import main
from runners.execution import mirrors as mirrors_module
from runners.execution.mirrors import LEAVE_S, Mirroring, Mirrors
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder
from runners.stores import SERVER_S
from tests.conftest import ROOT
from tests.runners.children import wait_for
from tests.runners.conftest import clean_environment, write_project

EXPERIMENT = "experiments/micro_theta.yaml"
NAME = "micro-theta-micro"
SLACK_S = 10.0  # between two sweeps on a busy machine


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port that refuses connections."""
    yield free_port()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


class Failing(Quiet):
    """Something else's server: every answer is an error."""

    def do_GET(self) -> None:
        self.send_error(503)

    do_POST = do_GET  # noqa: N815


class Dripping(Quiet):
    """A byte of the answer each second, so that no single read takes long."""

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"H")
                time.sleep(1)

    do_POST = do_GET  # noqa: N815


def failing():
    return _serving(Failing)


def dripping():
    return _serving(Dripping)


def start(project: Path, verb: str, *arguments: str, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runners", verb, EXPERIMENT, *arguments],
        cwd=project,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)} | ({"MLFLOW_TRACKING_URI": uri} if uri else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SWEEP = ("--jobs", "1", "--seeds", "1", "--device", "cpu")


def states(project: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in project.glob("runs/*/status.json")]


def trained_in(project: Path) -> float:
    """Seconds from the first run's beginning to the last one's end."""
    runs = states(project)
    assert [run["state"] for run in runs] == ["FINISHED"] * 3
    return max(run["ended"] for run in runs) - min(run["started"] for run in runs)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> tuple[float, float]:
    """Of a sweep beside a store that answers: seconds of the whole, and of its training."""
    project, began = write_project(tmp_path_factory.mktemp("healthy")), time.monotonic()
    done = start(project, "run", *SWEEP, uri="")
    _, errors = done.communicate(timeout=300)
    assert (done.returncode, errors) == (0, "")
    return time.monotonic() - began, trained_in(project)


@pytest.mark.slow
@pytest.mark.parametrize("server", [nobody, silent, failing, dripping])
def test_a_sweep_takes_no_longer_without_a_store_and_ends_in_its_verdict(project, healthy, server):
    with server() as port:
        began = time.monotonic()
        process = start(project, "run", *SWEEP, uri=f"http://user:secret@127.0.0.1:{port}")
        output, errors = process.communicate(timeout=300)
        took = time.monotonic() - began
    assert process.returncode == 0, errors
    assert trained_in(project) < healthy[1] + SLACK_S
    assert took < healthy[0] + LEAVE_S + 2 * SERVER_S + SLACK_S
    told = [line for line in errors.splitlines() if line.startswith("note: ")]
    assert told == errors.splitlines()
    assert len(told) == 2
    assert all(line.startswith(f"note: tracking store http://127.0.0.1:{port} does not answer (") for line in told)
    assert told[0].endswith("; runs are mirrored later (python -m runners report … does it)")
    assert told[1].endswith("; reported from sqlite:///mlflow.db, mirrored from the same runs")
    assert "theta_100" in output
    assert len(load_runs(load_design(NAME, f"sqlite:///{project}/mlflow.db"), f"sqlite:///{project}/mlflow.db")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "train"])
def test_ctrl_c_ends_a_command_whose_store_is_silent(project, verb):
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("num_steps: 30", "num_steps: 1200"))
    with silent() as port:
        arguments = SWEEP if verb == "run" else ("control", "--device", "cpu")
        process = start(project, verb, *arguments, uri=f"http://127.0.0.1:{port}")
        wait_for(lambda: any(file.stat().st_size for file in project.glob("runs/*/metrics.jsonl")))
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        took = time.monotonic() - began
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert took < LEAVE_S + 5.0
    assert [run["state"] for run in states(project)] == ["KILLED"]


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real one."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder)]
    environment = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log)

    def answers() -> bool:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return True
        time.sleep(0.2)
        return False

    try:
        wait_for(answers, timeout_s=120)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_server_that_hangs_and_dies_in_a_sweep_has_everything_once_it_is_back(project, healthy, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(folder, port) as server:
        process = start(project, "run", *SWEEP, uri=uri)
        wait_for(lambda: any(run["state"] == "FINISHED" for run in states(project)))
        os.killpg(server.pid, signal.SIGSTOP)  # it still takes connections
        wait_for(lambda: sum(run["state"] == "FINISHED" for run in states(project)) > 1)
        os.killpg(server.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert trained_in(project) < healthy[1] + SLACK_S
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 2
    assert "theta_100" in output

    with mlflow_server(folder, port):
        again = start(project, "report", "--seeds", "1", uri=uri)
        _, errors = again.communicate(timeout=300)
        assert (again.returncode, errors) == (0, "")
        local = f"sqlite:///{project}/mlflow.db"
        design = load_design(NAME, uri)
        assert design == load_design(NAME, local)
        served, stored = load_runs(design, uri), load_runs(design, local)
        pd.testing.assert_frame_equal(*(frame.drop(columns="mlflow_run_id") for frame in (served, stored)))
        pd.testing.assert_frame_equal(load_curves(served, tracking_uri=uri), load_curves(stored, tracking_uri=local))


def test_a_sweep_leaves_a_silent_store_in_seconds(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    plan = load_plan(Path(EXPERIMENT))
    with silent() as port:
        mirrors = Mirrors(Path("runs"), f"http://127.0.0.1:{port}")
        began = time.monotonic()
        with Mirroring(mirrors, plan, plan.runs()):
            entered = time.monotonic() - began
        left = time.monotonic() - began
    assert entered < 1
    assert left < LEAVE_S + 1


def test_a_run_deleted_in_the_ui_beside_a_sweep_is_mirrored_anew(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setattr(mirrors_module, "EVERY_S", 0.2)
    plan, uri = load_plan(Path(EXPERIMENT)), f"sqlite:///{project}/mlflow.db"
    run, mirrors = plan.runs()[0], Mirrors(Path("runs"), uri)
    folder = RunFolder(Path("runs"), run.key)
    folder.create(run.recipe, run.seed)
    folder.begin(Stratum(device="here"), {}, "data")
    client = mirrors.of(plan).client
    experiment = [mirrors.of(plan).experiment_id]
    with Mirroring(mirrors, plan, plan.runs()):
        wait_for(lambda: client.search_runs(experiment))
        (first,) = client.search_runs(experiment)
        client.delete_run(first.info.run_id)
        folder.log(30, {"final/val_loss": 3.0})
        folder.end("FINISHED")
        wait_for(lambda: [one.info.status for one in client.search_runs(experiment)] == ["FINISHED"])
    (second,) = client.search_runs(experiment)
    assert second.info.run_id != first.info.run_id
    assert second.data.metrics == {"final/val_loss": 3.0}
    # A thread that an earlier test left to a server may speak too.
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ") and uri in line]
    assert len(told) == 2
    assert told[1].endswith("takes runs again")


@pytest.mark.parametrize("uri", ["localhost:5000", "./mlruns"])
@pytest.mark.parametrize("words", [("run",), ("report",), ("train", "control")], ids=lambda words: words[0])
def test_an_address_that_can_be_none_is_refused_before_anything_is_done(project, monkeypatch, capsys, words, uri):
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = sorted(project.rglob("*"))
    assert main([words[0], EXPERIMENT, *words[1:]]) == 2
    assert f"MLFLOW_TRACKING_URI: received {uri}; allowed: " in capsys.readouterr().err
    assert sorted(project.rglob("*")) == before
