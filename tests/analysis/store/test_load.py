"""Reading a real MLflow store, written through MLflow's own client by the names of the schema."""

from __future__ import annotations

import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.stats.compare import compare
from analysis.store import schema
from analysis.store.load import (
    CURVE_COLUMNS,
    FINAL_METRICS,
    RUN_COLUMNS,
    list_experiments,
    load_curves,
    load_design,
    load_runs,
)
from tests.analysis.tables import arm, design

PLAN = design(arm("wide", 3, diff={"model.mlp.intermediate_size": (256, 512)}), control=2, looks=(3,))
LOSSES = {"control-0": 4.0, "control-1": 4.1, "wide-0": 3.0, "wide-1": 3.1}
TOKENS_PER_STEP = 256


class Writer:
    """Just enough of a writer: runs with the tags of the schema and metrics at steps."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str, tags: dict[str, str]) -> str:
        return self.client.create_experiment(name, tags=tags)

    def run(self, experiment: str, key: str, points=(), status="FINISHED", start=0, **tags) -> None:
        name, seed = key.split("-")
        values = (key, name, "variant", str(seed), "device=cpu")
        every = dict(zip(schema.RUN_TAGS, values, strict=True)) | tags
        run = self.client.create_run(experiment, start_time=start, tags={k: v for k, v in every.items() if v})
        from mlflow.entities import Metric

        metrics = [Metric(metric, value, time, step) for time, (metric, step, value) in enumerate(points)]
        self.client.log_batch(run.info.run_id, metrics=metrics)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)


def finished(loss: float) -> list[tuple[str, int, float]]:
    """Points of a run of 30 steps that was resumed at step 20, so that it has that step twice."""
    points = [("tokens", step, step * TOKENS_PER_STEP) for step in (10, 20, 20, 30)]
    points += [("train/loss", 10, 6.0), ("train/loss", 20, 99.0), ("train/loss", 20, 5.0), ("train/loss", 30, 4.5)]
    points += [("val/loss", 15, 5.5), ("val/loss", 30, loss)]  # nothing else was logged at step 15
    return [*points, ("final/val_loss", 30, loss), ("final/tokens_per_s", 30, 1000.0 + loss)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    writer = Writer(store)
    writer.experiment("unrelated", {})
    writer.client.delete_experiment(writer.experiment("gone-tiny", replace(PLAN, name="gone").to_tags()))
    experiment = writer.experiment(PLAN.experiment, PLAN.to_tags())
    for key, loss in LOSSES.items():
        writer.run(experiment, key, finished(loss), start=100)
    writer.run(experiment, "wide-0", finished(9.0), start=50)  # an earlier attempt that finished as well
    writer.run(experiment, "wide-1", [("train/loss", 10, 9.0)], "KILLED", start=50)  # one that did not
    writer.run(experiment, "wide-2", finished(2.0), start=50)  # one that finished, where the newest did not
    invalid = [("final/val_loss", 30, math.inf), ("final/train_loss", 30, math.nan)]
    writer.run(experiment, "wide-2", invalid, "FAILED", start=100, **{schema.TAG_INVALID: "not causal"})
    writer.run(experiment, "wide-7", finished(1.0))  # of an earlier recipe
    writer.run(experiment, "control-0", finished(1.0), **{schema.TAG_ARM: "narrow"})  # of an arm no longer declared
    broken = writer.experiment("broken-tiny", replace(PLAN, name="broken").to_tags())
    writer.run(broken, "wide-0", finished(3.0), **{schema.TAG_STRATUM: ""})
    return store


def test_design_comes_back(uri):
    assert load_design(PLAN.experiment, uri) == PLAN


@pytest.mark.parametrize("name", ["widht-tiny", "unrelated", "gone-tiny"])
def test_what_has_no_design_is_refused_with_the_names_that_have(uri, name):
    with pytest.raises(LookupError, match=rf"{name}.*: broken-tiny, width-tiny$"):
        load_design(name, uri)


def test_a_store_that_is_not_there_is_not_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    with pytest.raises(LookupError, match=r"nowhere\.db"):
        load_design(PLAN.experiment)
    assert not list(tmp_path.iterdir())


def test_runs_are_those_declared_each_by_its_newest_attempt(uri):
    runs = load_runs(PLAN, uri)
    assert runs["run_key"].tolist() == ["control-0", "control-1", "wide-0", "wide-1", "wide-2"]
    assert runs["final/val_loss"].tolist() == [*LOSSES.values(), math.inf]
    assert runs["status"].tolist() == ["FINISHED"] * 4 + ["FAILED"]
    assert runs["role"].tolist() == ["control"] * 2 + ["variant"] * 3
    assert runs["seed"].tolist() == [0, 1, 0, 1, 2]
    assert runs["invalid"].tolist() == [None] * 4 + ["not causal"]
    assert set(runs.columns) == {*RUN_COLUMNS, *FINAL_METRICS}
    assert all(runs[key].dtype == np.float64 for key in FINAL_METRICS)
    assert runs["final/peak_memory_bytes"].isna().all()


def test_runs_missing_a_tag_are_refused(uri):
    with pytest.raises(ValueError, match=schema.TAG_STRATUM):
        load_runs(replace(PLAN, name="broken"), uri)


def test_no_runs_give_an_empty_frame_of_the_same_shape(uri):
    plan = design(arm("other", 3), control=2)
    empty = load_runs(replace(plan, arms=plan.arms[1:]), uri)
    assert empty.empty
    assert empty.dtypes.astype(str).to_dict() == load_runs(PLAN, uri).dtypes.astype(str).to_dict()


def test_curves_are_tidy_and_keep_one_value_a_step(uri):
    runs = load_runs(PLAN, uri)
    curves = load_curves(runs, tracking_uri=uri)
    assert tuple(curves.columns) == CURVE_COLUMNS
    one = curves[(curves["arm"] == "wide") & (curves["seed"] == 1)]
    train, val = (one[one["metric"] == key] for key in ("train/loss", "val/loss"))
    assert train[["step", "tokens", "value"]].to_numpy().tolist() == [[10, 2560, 6], [20, 5120, 5], [30, 7680, 4.5]]
    assert val[["step", "tokens", "value"]].to_numpy().tolist() == [[15, 3840, 5.5], [30, 7680, 3.1]]
    assert set(curves["run_key"]) == set(LOSSES)


def test_curves_take_the_rows_and_metrics_they_are_asked_for(uri):
    runs = load_runs(PLAN, uri)
    curves = load_curves(runs[runs["arm"] == "control"], ("val/loss",), uri)
    assert set(curves["arm"]) == {"control"}
    assert set(curves["metric"]) == {"val/loss"}
    assert load_curves(runs.iloc[:0], tracking_uri=uri).columns.tolist() == list(CURVE_COLUMNS)
    with pytest.raises(ValueError, match="mlflow_run_id"):
        load_curves(runs.drop(columns="mlflow_run_id"), tracking_uri=uri)


def test_what_is_loaded_can_be_judged(uri):
    table = compare(load_runs(PLAN, uri), PLAN).set_index("arm")
    assert table.loc["wide", ["verdict", "why"]].tolist() == ["invalid", "wide seed 2: not causal"]
    assert table.loc["control", "mean"] == pytest.approx(4.05)


def copy_run(database: sqlite3.Connection, keys: Iterable[str]) -> None:
    """More runs as the only one there: its rows in each table, under another id and with its own tags."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}
    ((run,),) = database.execute("SELECT run_uuid FROM runs").fetchall()
    for number, key in enumerate(keys):
        for table, names in columns.items():
            if "run_uuid" in names:
                chosen = ", ".join("?" if name == "run_uuid" else name for name in names)
                copied = f"INSERT INTO {table} SELECT {chosen} FROM {table} WHERE run_uuid = ?"
                database.execute(copied, (f"{number:032x}", run))
        name, seed = key.split("-")
        for tag, value in ((schema.TAG_RUN_KEY, key), (schema.TAG_ARM, name), (schema.TAG_SEED, seed)):
            database.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (value, f"{number:032x}", tag))


@pytest.mark.slow
def test_a_thousand_runs_load_in_ten_seconds(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    writer, plan = Writer(store), design(*(arm(f"v{i}", 50) for i in range(19)), control=50)
    experiment = writer.experiment(plan.experiment, plan.to_tags())
    points = [(key, 30, 4.0 + i) for i, key in enumerate(FINAL_METRICS)]
    first, *others = [key for declared in plan.arms for key in declared.run_keys]
    writer.run(experiment, first, points)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        copy_run(database, others)
    began = time.perf_counter()
    runs = load_runs(load_design(plan.experiment, store), store)
    seconds = time.perf_counter() - began
    print(f"{len(runs)} runs in {seconds:.1f} s")
    assert len(runs) == 1000
    assert runs[list(FINAL_METRICS)].notna().all(axis=None)
    assert seconds < 10


@pytest.mark.slow
def test_a_tracking_server_gives_what_its_database_gives(uri):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [*command, "--backend-store-uri", uri], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        address, began = f"http://127.0.0.1:{port}", time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except urllib.error.URLError:
                assert time.monotonic() - began < 120, "the server does not answer"
                time.sleep(0.5)
        plan = load_design(PLAN.experiment, address)
        assert plan == load_design(PLAN.experiment, uri)
        served, stored = load_runs(plan, address), load_runs(plan, uri)
        pd.testing.assert_frame_equal(served, stored)
        pd.testing.assert_frame_equal(load_curves(served, tracking_uri=address), load_curves(stored, tracking_uri=uri))
        assert list_experiments(address) == list_experiments(uri)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_experiments_are_those_with_a_design_the_last_one_first(uri):
    assert list_experiments(uri) == ["broken-tiny", PLAN.experiment]


def test_when_where_and_on_what_a_run_was_made_is_loaded(tmp_path):
    from mlflow.entities import Param

    store = f"sqlite:///{tmp_path}/mlflow.db"
    writer = Writer(store)
    experiment = writer.experiment(PLAN.experiment, PLAN.to_tags())
    kinds = {"control-0": ("device=cpu-x86_64", ""), "wide-0": ("device=H100", ""), "wide-1": ("device=H100", "true")}
    for key, (stratum, deterministic) in kinds.items():
        tags = {schema.TAG_STRATUM: stratum, schema.TAG_DETERMINISTIC: deterministic}
        writer.run(experiment, key, finished(4.0), start=1_000, **tags)
    for run in writer.client.search_runs([experiment]):
        writer.client.log_batch(run.info.run_id, params=[Param(schema.PARAM_DATA, "abc")])
    runs = load_runs(PLAN, store).set_index("run_key")
    assert runs["reproducible"].to_dict() == {"control-0": True, "wide-0": False, "wide-1": True}
    assert set(runs["data"]) == {"abc"}
    assert set(runs["started"]) == {pd.Timestamp("1970-01-01 00:00:01", tz="UTC")}
    assert runs["ended"].notna().all()
