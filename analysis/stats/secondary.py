"""What probes and tasks measured besides the metric that is judged: the same comparison, with a family of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stats.compare import compare
from analysis.store.load import require
from analysis.store.schema import MEASURED, TASK_PREFIX, Arm, Design, sign_of, unit_of

COLUMNS = (
    *("metric", "arm", "role", "n", "mean", "delta", "ci_low", "ci_high", "eval_se"),
    *("p_adj", "verdict", "note"),
)
ItemValues = Mapping[str, Mapping[str, np.ndarray]]
"""Run key -> metric -> its value on each window of text or item of a task, (n,)."""


def probe_metrics(runs: pd.DataFrame) -> list[str]:
    """What can be judged of what was measured after the runs were done: columns of ``runs``, in the order of names.

    Of probes these are losses: a loss's standard error is no question, its bits per byte are the same one in another
    unit, and of a share of hits more is better. What a plugin measures counts as a loss. Of lm_eval's tasks it is all
    but the standard errors.
    """
    found = (str(name) for name in runs.columns if str(name).startswith(MEASURED))
    losses = (
        name for name in found if unit_of(name) in ("nats/token", "") and not name.endswith(("/loss_se", "_stderr"))
    )
    return sorted(losses, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def secondary(
    runs: pd.DataFrame, design: Design, metrics: Sequence[str] | None = None, items: ItemValues | None = None
) -> pd.DataFrame:
    """Every arm compared with the control in every one of ``metrics``, as the verdicts are, block by block.

    All of them are one family: each has the share 1 / len(metrics) of alpha, so that the intervals of all variants in
    all metrics hold together with chance 1 - alpha. The prior is the judged metric's and is not used, and neither is
    its margin for the scores of tasks: they are in another unit, and never called equivalent.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`; runs without a metric are not in its comparison.
        design: what was declared.
        metrics: columns of ``runs``; by default all of :func:`probe_metrics`.
        items: what was kept beside them, for ``eval_se``.

    Returns:
        One row for each metric and arm: ``mean``, ``delta``, its simultaneous interval ``ci_low, ci_high``, the
        difference's ``eval_se`` (:func:`paired_error`), ``p_adj`` over the family, the ``verdict`` in a word, and in
        ``note`` where it says the opposite of the judged metric, and why there is no interval.

    Raises:
        ValueError: when ``runs`` lacks a metric.
    """
    chosen = probe_metrics(runs) if metrics is None else list(metrics)
    require(runs, chosen)
    if not chosen:
        return pd.DataFrame(columns=list(COLUMNS))
    judged = compare(runs, design).set_index("arm")["verdict"]
    declared = runs[runs["role"] != "budget"]
    parts = [_compared(declared, design, metric, len(chosen), items or {}) for metric in chosen]
    table = pd.concat(parts, ignore_index=True)
    opposite = table["arm"].map(judged).map({"better": "worse", "worse": "better"}).eq(table["verdict"])
    table.loc[opposite, "note"] = f"the opposite of {design.metric}"
    return table


def _compared(runs: pd.DataFrame, design: Design, metric: str, count: int, items: ItemValues) -> pd.DataFrame:
    """The rows of one metric out of ``count``."""
    sign, measured = sign_of(metric), runs[runs[metric].notna()]
    margin = 0.0 if metric.startswith(TASK_PREFIX) else design.margin
    plan = replace(design, arms=design.compared, prior=None, alpha=design.alpha / count, metric=metric, margin=margin)
    table = compare(measured.assign(**{metric: sign * measured[metric]}), plan).assign(metric=metric)
    table["p_adj"] = (table["p_adj"] * count).clip(upper=1.0)
    if sign < 0:
        ends = ("mean", "mean"), ("delta", "delta"), ("ci_low", "ci_high"), ("ci_high", "ci_low")
        table = table.assign(**{name: 0.0 - table[other] for name, other in ends})  # not -0.0
    usable = set(measured.loc[measured["status"].eq("FINISHED") & measured["invalid"].isna(), "run_key"])
    kept = {key: of[metric] for key, of in items.items() if key in usable and metric in of}
    looks = dict(zip(table["arm"], table["look"], strict=True))
    table["eval_se"] = [
        paired_error(arm, plan, kept, None if math.isnan(looks[arm.name]) else int(looks[arm.name]))
        for arm in plan.arms
    ]
    barred = table["ci_low"].isna() & table["verdict"].ne("")
    table["note"] = table["why"].str.partition(";")[0].where(barred, "")
    return table[list(COLUMNS)]


def paired_error(arm: Arm, design: Design, values: Mapping[str, np.ndarray], upto: int | None = None) -> float:
    """Standard error of an arm's difference from the control over the windows or items that both were measured on.

    The difference on each window is the mean over blocks, and the windows are the same in every block: this is the
    error of the choice of text, not of seeds. What makes a window hard for both cancels.

    Args:
        arm: which.
        design: what was declared.
        values: run key -> the metric on each window, (n,).
        upto: blocks that the difference rests on; all when None.

    Returns:
        NaN for the control, and where fewer than two windows, or not the same ones, were kept.
    """
    control, mine = design.control.run_keys[:upto], arm.run_keys[:upto]
    if design.independent:
        sides = [[values[key] for key in keys if key in values] for keys in (control, mine)]
    else:
        both = [pair for pair in zip(control, mine, strict=False) if values.keys() >= set(pair)]
        sides = [[values[pair[side]] for pair in both] for side in (0, 1)]
    lengths = {len(one) for side in sides for one in side}
    if arm is design.control or not all(sides) or len(lengths) != 1 or min(lengths) < 2:
        return math.nan
    apart = np.mean(sides[1], axis=0) - np.mean(sides[0], axis=0)
    return float(apart.std(ddof=1) / math.sqrt(len(apart)))
