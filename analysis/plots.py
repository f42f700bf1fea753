"""Figures for a report, drawn without pyplot so that no global state and no display is involved."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.schema import METRICS, Design

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers (yellow left out: too pale for a line), then again dashed.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", ":")
_CONTROL_COLOUR = "#000000"
_ZOOM_FROM = 0.2  # share of the training left out: its losses would flatten all others into one line
_KNOWN_BAD_ROOM = 2  # how many times wider a known-bad arm may make the forest's axis


def figure(table: pd.DataFrame, runs: pd.DataFrame, curves: pd.DataFrame, design: Design) -> Figure:
    """Validation loss against training tokens, how it differs from the control's, and the verdicts as a forest plot.

    Only valid finished runs are drawn as curves: each arm's mean over seeds, in a band from its lowest to its highest
    seed; in the second panel, less the control's mean at the same tokens. The forest has the simultaneous intervals,
    the margin as a shaded band and each verdict in words; a difference off its axis becomes an arrow with its value.

    Args:
        table: the frame of :func:`analysis.compare.compare`.
        runs: the frame of :func:`analysis.load.load_runs`.
        curves: the frame of :func:`analysis.load.load_curves`, holding "val/loss".
        design: what was declared.
    """
    from matplotlib.figure import Figure

    rows = len(design.arms) - 1
    drawing = Figure(figsize=(15, max(4.8, 2.0 + 0.34 * rows)), layout="constrained")
    left, middle, right = drawing.subplots(1, 3, width_ratios=(1, 1, 1.1))
    styles = _styles(design)
    losses = _losses(runs, curves)
    unit = METRICS["val/loss"].unit
    _draw_bands(left, losses, styles, f"validation loss ({unit})")
    left.set_title("Mean over seeds; band: lowest to highest seed", fontsize=10)
    _draw_bands(middle, _less_control(losses, design), styles, f"difference ({unit})")
    middle.set_title("The same, less the control's mean", fontsize=10)
    _draw_forest(right, table, design, styles)
    names = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    drawing.legend(names.values(), names, loc="outside lower center", ncols=min(6, 1 + rows), frameon=False, fontsize=9)
    drawing.suptitle(textwrap.fill(f"{design.name} on {design.base}: {design.question}", 110), fontsize=11)
    return drawing


def _styles(design: Design) -> dict[str, dict[str, Any]]:
    styles = {design.control.name: {"color": _CONTROL_COLOUR, "linestyle": "-"}}
    for i, arm in enumerate(design.arms[1:]):
        dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
        styles[arm.name] = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": dash}
    return styles


def _losses(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Validation losses of the valid finished runs, after the first part of training."""
    good = runs[(runs["status"] == "FINISHED") & runs["invalid"].isna()]
    losses = curves[curves["metric"] == "val/loss"].merge(good[["run_key", "arm"]], on=["run_key", "arm"])
    return losses[losses["tokens"] >= _ZOOM_FROM * losses["tokens"].max()]


def _less_control(losses: pd.DataFrame, design: Design) -> pd.DataFrame:
    """The losses minus the control's mean at the same tokens; those without one are left out."""
    level = losses[losses["arm"] == design.control.name].groupby("tokens")["value"].mean()
    return losses.assign(value=losses["value"] - losses["tokens"].map(level)).dropna(subset="value")


def _draw_bands(axes: Axes, losses: pd.DataFrame, styles: dict[str, dict[str, Any]], label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set(xlabel="training tokens", ylabel=label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    bands = (
        losses.astype({"tokens": float, "value": float})
        .groupby(["arm", "tokens"])["value"]
        .agg(["mean", "min", "max"])
        .reset_index()
    )
    for name, style in styles.items():
        band = bands[bands["arm"] == name]
        x = band["tokens"]
        axes.fill_between(x, band["min"], band["max"], color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, band["mean"], label=name, linewidth=1.5, **style)


def _draw_forest(axes: Axes, table: pd.DataFrame, design: Design, styles: dict[str, dict[str, Any]]) -> None:
    arms = table[table["role"] != "control"].reset_index(drop=True)
    limit = _forest_limit(arms, design)
    axes.axvspan(-design.margin, design.margin, color="0.9", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, row in enumerate(arms.to_dict("records")):
        colour = styles[row["arm"]]["color"]
        delta = row["delta"]
        if abs(delta) > limit:
            edge = np.sign(delta) * limit
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.5}
            axes.annotate("", (edge, y), (0.86 * edge, y), arrowprops=arrow)
            axes.text(0.84 * edge, y, f"{delta:+.3f}", va="center", ha="right" if delta > 0 else "left", fontsize=9)
        elif np.isfinite(delta):
            half = np.array([[delta - row["ci_low"]], [row["ci_high"] - delta]])
            error = half if np.isfinite(half).all() else None
            axes.errorbar([delta], [y], xerr=error, fmt="o", color=colour, capsize=3, markersize=5, linewidth=1.5)
        axes.text(1.02, y, row["verdict"], transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set(xlim=(-limit, limit), ylim=(len(arms) - 0.5, -0.5), yticks=range(len(arms)))
    axes.set_yticklabels([f"{arm} ({n})" for arm, n in zip(arms["arm"], arms["n"], strict=True)])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{design.metric} minus the control's ({METRICS[design.metric].unit}); lower is better")
    title = f"{100 * (1 - design.alpha):.0f} % simultaneous intervals; shaded: margin ±{design.margin:g}"
    axes.set_title(title, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _forest_limit(arms: pd.DataFrame, design: Design) -> float:
    """Half the width of the forest's axis: room for all arms, unless a known-bad one would squeeze the others."""
    known_bad = arms["arm"].isin([arm.name for arm in design.arms if arm.role == "check" and arm.expect == "worse"])
    ends = np.abs(arms[["delta", "ci_low", "ci_high"]].to_numpy(float))
    room = [1.15 * float(np.max(e, initial=0.0, where=np.isfinite(e))) for e in (ends[~known_bad], ends[known_bad])]
    others = max(2 * design.margin, room[0])
    return room[1] if others < room[1] <= _KNOWN_BAD_ROOM * others else others
