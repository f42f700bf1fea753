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
_LAST_POINTS = 3  # evaluations that the inset shows


def figure(table: pd.DataFrame, runs: pd.DataFrame, curves: pd.DataFrame, design: Design) -> Figure:
    """Validation loss against training tokens, and the differences from the control as a forest plot.

    Only valid finished runs are drawn as curves: each arm's mean over seeds, in a band from its lowest to its highest
    seed. The forest has the simultaneous intervals, the margin as a shaded band and each verdict in words; a difference
    off its axis becomes an arrow with its value.

    Args:
        table: the frame of :func:`analysis.compare.compare`.
        runs: the frame of :func:`analysis.load.load_runs`.
        curves: the frame of :func:`analysis.load.load_curves`, holding "val/loss".
        design: what was declared.
    """
    from matplotlib.figure import Figure

    rows = len(design.arms) - 1
    drawing = Figure(figsize=(11.5, max(4.4, 2.0 + 0.34 * rows)), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1))
    styles = _styles(design)
    _draw_curves(left, runs, curves, styles)
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


def _draw_curves(axes: Axes, runs: pd.DataFrame, curves: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    good = runs[(runs["status"] == "FINISHED") & runs["invalid"].isna()]
    losses = curves[curves["metric"] == "val/loss"].merge(good[["run_key", "arm"]], on=["run_key", "arm"])
    bands = losses.groupby(["arm", "tokens"])["value"].agg(["mean", "min", "max"]).reset_index()
    axes.set(xlabel="training tokens", ylabel=f"validation loss ({METRICS['val/loss'].unit})")
    axes.set_title("Mean over seeds; band: lowest to highest seed", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if bands.empty:
        return
    _draw_bands(axes, bands, styles)
    _zoom(axes, bands, _ZOOM_FROM * bands["tokens"].max())
    end = axes.inset_axes((0.47, 0.5, 0.52, 0.48))
    _draw_bands(end, bands, styles)
    _zoom(end, bands, bands["tokens"].drop_duplicates().nlargest(_LAST_POINTS).min())
    end.tick_params(labelsize=8)
    end.set_xlabel("the end of training", fontsize=8)
    end.grid(alpha=0.25)


def _draw_bands(axes: Axes, bands: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    for name, style in styles.items():
        band = bands[bands["arm"] == name]
        x = band["tokens"]
        axes.fill_between(x, band["min"], band["max"], color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, band["mean"], label=name, linewidth=1.5, **style)


def _zoom(axes: Axes, bands: pd.DataFrame, tokens: float) -> None:
    """Fit both axes to what comes after ``tokens``."""
    from matplotlib.ticker import EngFormatter

    late = bands[bands["tokens"] >= tokens]
    room = 0.04 * (late["max"].max() - late["min"].min()) or 0.01
    axes.set_ylim(late["min"].min() - room, late["max"].max() + room)
    axes.set_xlim(tokens, late["tokens"].max())
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


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
    """Half the width of the forest's axis: room for all arms but the known-bad ones, which would squeeze the others."""
    known_bad = [arm.name for arm in design.arms if arm.role == "check" and arm.expect == "worse"]
    shown = arms[~arms["arm"].isin(known_bad)]
    ends = np.abs(shown[["delta", "ci_low", "ci_high"]].to_numpy(float))
    return max(2 * design.margin, 1.15 * float(np.max(ends, initial=0.0, where=np.isfinite(ends))))
