"""How often a task is solved: counts of runs, compared by exact tests, since outcomes are two heaps and no bell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.store.schema import Design

SOLVED = 0.9
"""The share of certain answers from which a task counts as solved; runs are near 1 or near guessing."""

ACCURACY = "final/val_task_accuracy"
CURVE = "val/task_accuracy"
Row = dict[str, Any]
COLUMNS = ("arm", "role", "solved", "n", "lowest", "median", "highest", "steps", "p", "p_adj", "word")


def has_task(runs: pd.DataFrame) -> bool:
    """Whether the runs were measured on a task with certain answers."""
    return ACCURACY in runs.columns and bool(runs[ACCURACY].notna().any())


def solved(runs: pd.DataFrame, curves: pd.DataFrame, design: Design) -> pd.DataFrame:
    """How many runs of each arm solve the task, beside the control's.

    Fisher's exact test of the counts, two-sided; Holm over the variants, checks one at a time. Runs of a block share
    their seed, which makes the test the more careful the more outcomes they share.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`, with ``ACCURACY``.
        curves: the frame of :func:`analysis.store.load.load_curves`, with ``CURVE``.
        design: what was declared.

    Returns:
        A row for each arm that has runs: ``solved`` of ``n`` valid finished runs; the ``lowest``, ``median`` and
        ``highest`` accuracy; ``steps``, the median over all runs of the training steps after which an evaluation found
        it solved first, infinite for a run that never solves it; ``p, p_adj``; and ``word``: more
        often, less often or undecided, "" for the control.
    """
    valid = runs[(runs["status"] == "FINISHED") & runs["invalid"].isna() & runs[ACCURACY].notna()]
    rows: list[Row] = []
    for arm in design.compared:
        mine = valid[valid["arm"] == arm.name]
        if len(mine):
            rows.append(
                {
                    "arm": arm.name,
                    "role": arm.role,
                    "solved": int((mine[ACCURACY] >= SOLVED).sum()),
                    "n": len(mine),
                    "lowest": float(mine[ACCURACY].min()),
                    "median": float(mine[ACCURACY].median()),
                    "highest": float(mine[ACCURACY].max()),
                    "steps": _steps(mine, curves),
                }
            )
    control = next((row for row in rows if row["role"] == "control"), None)
    for row in rows:
        compared = control is not None and row is not control
        row["p"] = _fisher(row, control) if control and compared else math.nan
    _adjust(rows, sum(arm.role == "variant" for arm in design.arms), design.alpha, control)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _fisher(row: Row, control: Row) -> float:
    from scipy.stats import fisher_exact  # which takes a while to load

    table = np.array([[one["solved"], one["n"] - one["solved"]] for one in (row, control)])
    return float(fisher_exact(table).pvalue)


def _adjust(rows: list[Row], family: int, alpha: float, control: Row | None) -> None:
    """Holm's p over the variants, and the word."""
    variants = sorted((row for row in rows if row["role"] == "variant"), key=lambda row: row["p"])
    worst = 0.0
    for rank, row in enumerate(variants if control else []):
        worst = min(1.0, max(worst, (family - rank) * row["p"]))
        row["p_adj"] = worst
    for row in rows:
        row.setdefault("p_adj", row["p"])
        if control is None or row is control:
            row["word"] = ""
        elif row["p_adj"] < alpha:
            more = row["solved"] / row["n"] > control["solved"] / control["n"]
            row["word"] = "more often" if more else "less often"
        else:
            row["word"] = "undecided"


def _steps(runs: pd.DataFrame, curves: pd.DataFrame) -> float:
    """The median step at which a run's accuracy first was that of a solved task; of runs that never were it is inf."""
    own = curves[(curves["metric"] == CURVE) & curves["run_key"].isin(runs["run_key"]) & (curves["value"] >= SOLVED)]
    first = own.groupby("run_key")["step"].min().reindex(runs["run_key"]).astype(float).fillna(math.inf)
    return float(first.median())
