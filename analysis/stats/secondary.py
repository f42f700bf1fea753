"""What probes measured besides the metric that is judged: the same comparison, with a family of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from analysis.stats.compare import compare
from analysis.store.load import require
from analysis.store.schema import PROBE_PREFIX, Design, unit_of

COLUMNS = ("metric", "arm", "role", "n", "mean", "delta", "ci_low", "ci_high", "p_adj", "verdict", "note")


def probe_metrics(runs: pd.DataFrame) -> list[str]:
    """The losses among what probes measured after the runs were done: columns of ``runs``, in the order of names.

    A loss's standard error is no question, its bits per byte are the same one in another unit, and of a share of hits
    more is better. What a plugin measures counts as a loss.
    """
    found = (str(name) for name in runs.columns if str(name).startswith(PROBE_PREFIX))
    losses = (name for name in found if unit_of(name) in ("nats/token", "") and not name.endswith("/loss_se"))
    return sorted(losses, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def secondary(runs: pd.DataFrame, design: Design, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Every arm compared with the control in every one of ``metrics``, as the verdicts are, block by block.

    All of them are one family: each has the share 1 / len(metrics) of alpha, so that the intervals of all variants in
    all metrics hold together with chance 1 - alpha. The prior is the judged metric's and is not used.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`; runs without a metric are not in its comparison.
        design: what was declared.
        metrics: columns of ``runs``; by default all of :func:`probe_metrics`.

    Returns:
        One row for each metric and arm: ``mean``, ``delta``, its simultaneous interval ``ci_low, ci_high``, ``p_adj``
        over the family, the ``verdict`` in a word, and in ``note`` where it says the opposite of the judged metric.

    Raises:
        ValueError: when ``runs`` lacks a metric.
    """
    chosen = probe_metrics(runs) if metrics is None else list(metrics)
    require(runs, chosen)
    if not chosen:
        return pd.DataFrame(columns=list(COLUMNS))
    judged = compare(runs, design).set_index("arm")["verdict"]
    plan = replace(design, arms=design.compared, prior=None, alpha=design.alpha / len(chosen))
    declared = runs[runs["role"] != "budget"]
    parts = []
    for metric in chosen:
        table = compare(declared[declared[metric].notna()], replace(plan, metric=metric)).assign(metric=metric)
        table["p_adj"] = (table["p_adj"] * len(chosen)).clip(upper=1.0)
        opposite = table["arm"].map(judged).map({"better": "worse", "worse": "better"}).eq(table["verdict"])
        table["note"] = opposite.map({True: f"the opposite of {design.metric}", False: ""})
        parts.append(table[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True)
