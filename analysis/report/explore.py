"""What the notebooks show besides the report's own figures: an experiment, its runs one by one, what blocks share."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.report import figures
from analysis.stats.power import sigma_interval
from analysis.store import load
from analysis.store.schema import METRICS, Design

EXPERIMENT_VARIABLE = "ABLATION_EXPERIMENT"


def choose(experiment: str | None = None, tracking_uri: str | None = None) -> tuple[Design, pd.DataFrame]:
    """An experiment's design and its valid finished runs.

    Args:
        experiment: its name; None is ABLATION_EXPERIMENT or, where that is not set, the one written to last that has
            such runs.
        tracking_uri: the store; None is :func:`analysis.store.address.tracking_uri`.

    Raises:
        LookupError: when there is no such experiment, or it has no such run.
    """
    experiment = experiment or os.environ.get(EXPERIMENT_VARIABLE)
    names = [experiment] if experiment else load.list_experiments(tracking_uri)
    for name in names:
        try:
            design = load.load_design(name, tracking_uri)
        except LookupError:
            if experiment:
                raise
            continue  # of another version: the next one may do
        runs = figures.valid(load.load_runs(design, tracking_uri))
        if len(runs):
            return design, runs.reset_index(drop=True)
    asked = f"experiment {experiment!r}" if experiment else "an experiment"
    raise LookupError(f"no valid finished run of {asked} in the tracking store; it has the experiments {names}")


def strip(runs: pd.DataFrame, design: Design, metric: str) -> Figure:
    """Each run's final ``metric`` as a point, arm by arm, with the arm's mean as a bar; a thin line joins a block.

    Args:
        runs: the frame of :func:`choose`.
        design: what was declared.
        metric: a ``final/…`` key of :data:`analysis.store.schema.METRICS`.
    """
    drawing, styles = figures.Drawing(9, 1.6 + 0.36 * len(design.compared)), figures.arm_styles(design)
    axes = drawing.subplots()
    places = {arm.name: y for y, arm in enumerate(design.compared)}
    for _, block in [] if design.independent else figures.by_block(runs, design).groupby("block"):
        rows = sorted(zip(block["arm"].map(places), block[metric].astype(float), strict=True))
        axes.plot([value for _, value in rows], [y for y, _ in rows], color="0.8", linewidth=0.7, zorder=1)
    for y, arm in enumerate(design.compared):
        values = runs.loc[runs["arm"] == arm.name, metric].to_numpy(float)
        style = {"color": styles[arm.name]["color"], "marker": styles[arm.name]["marker"]}
        axes.plot(values, np.full(len(values), y), linestyle="", alpha=0.6, markersize=5, **style)
        if len(values):
            axes.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=style["color"], linewidth=2)
    axes.set(xlabel=f"{metric} ({METRICS[metric].unit})", yticks=range(len(design.compared)))
    axes.set_yticklabels([figures.shorten(arm.name) for arm in design.compared])
    axes.set_ylim(len(design.compared) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def curve(curves: pd.DataFrame, design: Design, metric: str) -> Figure:
    """A logged ``metric`` against training tokens: mean over seeds, in a band from the lowest to the highest.

    Args:
        curves: the frame of :func:`analysis.store.load.load_curves`, holding ``metric``.
        design: what was declared.
        metric: a key of :data:`analysis.store.schema.METRICS`.
    """
    drawing = figures.Drawing(9, 4.2)
    axes = drawing.subplots()
    points = curves[curves["metric"] == metric]
    styles = {name: style for name, style in figures.arm_styles(design).items() if name in set(points["arm"])}
    figures.draw_bands(axes, points, styles, f"{metric} ({METRICS[metric].unit})")
    axes.legend(frameon=False, fontsize=9)
    return drawing


def spread(curves: pd.DataFrame, arm: str, metric: str = "val/loss") -> pd.DataFrame:
    """How far the runs of one arm lie apart at each evaluation, and how well that foretells their end.

    Returns:
        A row for each step at which every run was evaluated: ``tokens``, ``n``, ``mean``, ``sd`` with the ends of its
        95 % interval ``sd_low`` and ``sd_high`` (chi-square), and ``correlation`` with the last evaluation, all NaN
        where there are fewer than three runs.
    """
    points = curves[(curves["arm"] == arm) & (curves["metric"] == metric)]
    wide = points.pivot_table(index="tokens", columns="seed", values="value").dropna()
    rows = []
    for tokens, values in wide.iterrows():
        n, row = len(values), {"tokens": tokens, "n": len(values), "mean": values.mean()}
        if n > 2:
            sd = float(values.std(ddof=1))
            low, high = sigma_interval(sd, n - 1)
            row |= {"sd": sd, "sd_low": low, "sd_high": high}
            row["correlation"] = float(np.corrcoef(values, wide.iloc[-1])[0, 1]) if sd else math.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=["tokens", "n", "mean", "sd", "sd_low", "sd_high", "correlation"]).astype(float)


def spread_figure(spreads: pd.DataFrame, unit: str) -> Figure:
    """The seed sd over training with its interval, and the correlation with the end; of the frame of :func:`spread`."""
    drawing = figures.Drawing(9, 4.2)
    left, right = drawing.subplots(1, 2)
    left.fill_between(spreads["tokens"], spreads["sd_low"], spreads["sd_high"], color="0.85", linewidth=0)
    left.plot(spreads["tokens"], spreads["sd"], color="#0072B2", marker="o")
    left.set(ylabel=f"sd between seeds, 95 % interval ({unit})", ylim=(0, None))
    right.plot(spreads["tokens"], spreads["correlation"], color="#D55E00", marker="s")
    right.set(ylabel="correlation with the last evaluation (1)", ylim=(-1.05, 1.05))
    for axes in (left, right):
        axes.set_xlabel("training tokens")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing


def pairing(curves: pd.DataFrame, design: Design, metric: str = "val/loss") -> pd.DataFrame:
    """What sharing a seed with the control is worth along the way, arm by arm.

    Returns:
        A row for each arm but the control and each step at which three blocks or more were evaluated: ``arm``,
        ``tokens``, ``blocks``; ``sd`` of the difference within a block with the ends of its 95 % interval ``sd_low``
        and ``sd_high`` (chi-square), in the metric's unit; ``independent``, what that sd would be between independent
        seeds; ``correlation`` of the arm's losses with the control's over blocks, NaN where either has no spread.
    """
    points = figures.by_block(curves[curves["metric"] == metric], design)
    wide = points.pivot_table(index=["tokens", "block"], columns="arm", values="value")
    rows = []
    for arm in [arm.name for arm in design.compared[1:] if arm.name in wide and design.control.name in wide]:
        both = wide[[design.control.name, arm]].dropna()
        for tokens, values in both.groupby("tokens"):
            if len(values) < 3:
                continue
            control, own = (values[name].to_numpy(float) for name in both.columns)
            sd, spreads = float((own - control).std(ddof=1)), (control.std(ddof=1), own.std(ddof=1))
            low, high = sigma_interval(sd, len(values) - 1)
            shared = float(np.corrcoef(control, own)[0, 1]) if min(spreads) > 0 else math.nan
            rows.append((arm, tokens, len(values), sd, low, high, math.hypot(*spreads), shared))
    columns = ["arm", "tokens", "blocks", "sd", "sd_low", "sd_high", "independent", "correlation"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], float))


def pairing_figure(pairs: pd.DataFrame, design: Design, unit: str) -> Figure:
    """The sd of a difference within a block over training, and the seed correlation: the frame of :func:`pairing`."""
    drawing = figures.Drawing(9, 4.4)
    left, right = drawing.subplots(1, 2)
    styles = figures.arm_styles(design)
    for name in pairs["arm"].unique():
        own = pairs[pairs["arm"] == name]
        line = {"color": styles[name]["color"], "linestyle": styles[name]["linestyle"], "label": figures.shorten(name)}
        left.plot(own["tokens"], own["sd"], **line)
        right.plot(own["tokens"], own["correlation"], **line)
    typical = pairs.groupby("tokens")["independent"].median()
    left.plot(typical.index, typical, color="0.4", linestyle=(0, (1, 1)), label="independent seeds, median arm")
    left.set(ylabel=f"sd of the difference within a block ({unit})", ylim=(0, None))
    right.set(ylabel="seed correlation with the control (1)")
    for axes in (left, right):
        axes.set_xlabel("training tokens")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figures.legend(drawing, left, len(styles) + 1)
    return drawing
