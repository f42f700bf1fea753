"""Reading a real MLflow store, written through MLflow's own client by the names of the schema."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import schema
from analysis.compare import compare
from analysis.load import CURVE_COLUMNS, FINAL_METRICS, RUN_COLUMNS, load_curves, load_design, load_runs
from tests.analysis.tables import arm, design

PLAN = design(arm("wide", 3, diff={"model.mlp.intermediate_size": (256, 512)}), control=2)
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
