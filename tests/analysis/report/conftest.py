"""One experiment with an arm of each kind, for every page and figure."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.stats.compare import compare
from analysis.store.schema import Prior
from tests.analysis.tables import arm, change, design, frame

ARMS = {
    "twin": [10.05, 10.15, 10.42],
    "nope": [19.0, 19.4, 19.3],
    "wide": [6.0, 6.3, 6.35],
    "same": [10.1, 10.25, 10.5],
    "part": [10.2, 10.3],
    "bad": [10.2, 10.3, 10.4],
    "none": [],
}


PLAN = design(
    arm("twin", 3, "check", expect="same", diff={"train.init_perturbation": (0.0, 2.0**-20)}),
    arm("nope", 3, "check", expect="worse"),
    arm(
        "wide",
        3,
        num_params=1100,
        diff={"model.mlp.intermediate_size": (256, 512), "model.head_dim": (16, 8)},
        solved=("model.head_dim",),
        expect="worse",
    ),
    *(arm(name, 3) for name in ("same", "part", "bad", "none")),
    prior=Prior(sd=0.1, df=10, source="earlier experiments."),
)


NO_CURVES = pd.DataFrame(columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])


@pytest.fixture
def runs():
    whole = frame({"control": [10.0, 10.2, 10.4, 10.6]} | ARMS, PLAN)
    return change(whole, "bad-1", status="FAILED", invalid="the label shift is off")


@pytest.fixture
def table(runs):
    return compare(runs, PLAN)


@pytest.fixture
def curves(runs):
    rows = [
        (run["run_key"], run["arm"], run["seed"], "val/loss", step, step * 256.0, run["final/val_loss"] + 100 / step)
        for run in runs.to_dict("records")
        for step in range(100, 1001, 100)
    ]
    return pd.DataFrame(rows, columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])
