"""Designs and frames that the tests of this package share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.store.load import FINAL_METRICS, RUN_COLUMNS
from analysis.store.schema import Arm, Design

PARAMS = 1000


def arm(name: str, n: int, role: str = "variant", **fields) -> Arm:
    """An arm with ``n`` declared runs, as costly as the control unless told otherwise."""
    costs = {"num_params": PARAMS, "flops_per_token": 6 * PARAMS}
    return Arm(name=name, role=role, run_keys=tuple(f"{name}-{i}" for i in range(n)), **(costs | fields))


def design(*arms: Arm, control: int = 4, **fields) -> Design:
    """A design over a control with ``control`` runs and the given arms, with a margin of 1."""
    head = {
        "name": "width",
        "question": "Does width help?",
        "base": "tiny",
        "metric": "final/val_loss",
        "alpha": 0.05,
        "margin": 1.0,
        "tokens_per_run": 256_000,
    }
    return Design(**(head | fields), arms=(arm("control", control, "control"), *arms))


def frame(values: Mapping[str, Sequence[float]], plan: Design, seeds: Mapping[str, Sequence[int]] = {}) -> pd.DataFrame:
    """Finished runs of one stratum with the given final losses.

    Run i of every arm is of block i, by its seed, unless told otherwise; where seeds are independent each is its own.
    """
    rows = []
    for declared in plan.arms:
        for i, loss in enumerate(values.get(declared.name, ())):
            key = declared.run_keys[i]
            own = len(rows) if plan.independent else plan.first_seed + i
            seed = seeds[declared.name][i] if declared.name in seeds else own
            head = (f"id-{key}", key, declared.name, declared.role, seed, "FINISHED", "device=cpu threads=1")
            began = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(minutes=i)
            values_of = (*head, "d1", True, began, began + pd.Timedelta(minutes=1), None, None, 1)
            rows.append(dict(zip(RUN_COLUMNS, values_of, strict=True)) | {"final/val_loss": loss})
    runs = pd.DataFrame(rows, columns=[*RUN_COLUMNS, *FINAL_METRICS])
    runs["final/tokens_per_s"] = 1000.0 * np.exp(0.01 * (np.arange(len(runs)) % 3))
    runs["final/val_loss_se"] = 0.25
    runs["final/peak_memory_bytes"] = 1e9
    return runs.astype(dict.fromkeys(FINAL_METRICS, float))


def change(runs: pd.DataFrame, key: str, **columns) -> pd.DataFrame:
    """The frame with some columns of the run ``key`` replaced; write ``final__x`` for ``final/x``."""
    changed = runs.copy()
    for name, value in columns.items():
        changed.loc[changed["run_key"] == key, name.replace("__", "/")] = value
    return changed
