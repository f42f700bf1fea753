"""What probes measured besides the judged metric: a table, and a figure of what has an order, such as positions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.cells import Row, difference, known, number, p_value, rows_of
from analysis.report.figures import Drawing, arm_styles, legend
from analysis.report.render import Table
from analysis.stats.secondary import probe_metrics
from analysis.store.schema import PROBE_PREFIX, Design, difference_unit

ORDERED = ("loss_by_position", "loss_past_window")
"""Probes whose metrics are places on an axis, and are drawn."""

_AXES = {
    "loss_by_position": "tokens before the predicted one",
    "loss_past_window": "place in the window, in training lengths",
}


def explained(table: pd.DataFrame, design: Design) -> str:
    """How the comparisons of :func:`analysis.stats.secondary.secondary` are to be read, in a sentence."""
    metrics, variants = table["metric"].nunique(), sum(arm.role == "variant" for arm in design.arms)
    error = (
        " The evaluation SE is the difference's own on the same windows or items, mean over blocks: it is of the "
        "choice of text, where the interval is of seeds."
    )
    return (
        "Differences from the control in what probes and tasks measured, as the verdicts are made: "
        f"{metrics} metrics of {variants} variants are one family, whose intervals hold together at "
        f"{100 * (1 - design.alpha):.0f} %."
        f"{error if table['eval_se'].notna().any() else ''}"
    )


def probe_table(table: pd.DataFrame, design: Design) -> Table:
    """The rows of :func:`analysis.stats.secondary.secondary`, the control's mean first in each metric."""
    paired = bool(table["eval_se"].notna().any())
    error = ("evaluation SE",) if paired else ()
    titles = ("metric", "arm", "n", "mean", "delta [interval]", *error, "p (adj.)", "verdict", "note")
    rows = [_cells(row, paired) for row in rows_of(table)]
    return Table(titles, rows)


def _cells(row: Row, paired: bool) -> tuple[str, ...]:
    control = row["role"] == "control"
    unit = difference_unit(row["metric"])
    return (
        row["metric"].removeprefix(PROBE_PREFIX),
        row["arm"],
        str(row["n"]),
        f"{number(row['mean'])} {unit}".strip(),
        "" if control else difference(row),
        *([number(row["eval_se"]) if known(row["eval_se"]) else ""] if paired else []),
        p_value(row["p_adj"]),
        row["verdict"],
        row["note"],
    )


def probe_text(table: pd.DataFrame, design: Design) -> str:
    """The same in fixed-width text, the name of a metric once."""
    made = probe_table(table, design)
    lines: list[Sequence[str]] = [made.titles]
    for metric, rows in groupby(made.rows, key=lambda row: row[0]):
        lines += [(metric if i == 0 else "", *row[1:]) for i, row in enumerate(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(made.titles))]
    text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([textwrap.fill(explained(table, design), 150), *text])


def drawn(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of text and probe in ``runs`` that :func:`probe_figure` has a panel for."""
    pairs = [tuple(metric.split("/")[1:3]) for metric in probe_metrics(runs)]
    return [(text, probe) for text, probe in dict.fromkeys(pairs) if probe in ORDERED]


def probe_figure(table: pd.DataFrame, runs: pd.DataFrame, design: Design) -> Figure:
    """Differences from the control by position, and past the training length, with their simultaneous intervals.

    Args:
        table: of :func:`analysis.stats.secondary.secondary`.
        runs: the frame of :func:`analysis.store.load.load_runs`.
        design: what was declared.
    """
    panels = drawn(runs)
    drawing = Drawing(6 * max(1, len(panels)), 4.6)
    axes = drawing.subplots(1, max(1, len(panels)), squeeze=False)[0]
    styles = arm_styles(design)
    for axis, (text, probe) in zip(axes, panels, strict=False):
        _panel(axis, table[table["metric"].str.startswith(f"{PROBE_PREFIX}{text}/{probe}/")], styles)
        axis.set_title(f"{probe} on {text}", fontsize=10)
        axis.set_xlabel(_AXES[probe])
    axes[0].set_ylabel("loss less the control's (nats/token)")
    legend(drawing, axes[0], len(design.compared))
    return drawing


def _panel(axis: Axes, table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """One line an arm over the metrics of a probe, side by side at each place."""
    places = {metric: i for i, metric in enumerate(table["metric"].unique())}
    arms = [arm for arm in table["arm"].unique() if (table.loc[table["arm"] == arm, "role"] != "control").all()]
    for number_of, arm in enumerate(arms):
        rows = table[table["arm"] == arm]
        x = rows["metric"].map(places) + 0.5 * (number_of / max(1, len(arms) - 1) - 0.5) * (len(arms) > 1)
        span = [rows["delta"] - rows["ci_low"], rows["ci_high"] - rows["delta"]]
        axis.errorbar(x, rows["delta"], yerr=span, label=arm, capsize=2, linewidth=1, **styles[arm])
    axis.axhline(0, color="#000000", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_xticks(range(len(places)), [_place(metric) for metric in places], rotation=30, ha="right")


def _place(metric: str) -> str:
    """The last part of a metric's key, without leading zeros."""
    ends = metric.rsplit("/", 1)[1].split("-")
    shown = [end.lstrip("0") or "0" for end in ends]
    return shown[0] if len(set(shown)) == 1 else "-".join(shown)
