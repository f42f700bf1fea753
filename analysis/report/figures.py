"""Figures of a report, drawn without pyplot so that no global state and no display is involved."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.report.cells import counted, rows_of, twin_of
from analysis.stats.worth import Scaling
from analysis.store.schema import METRICS, Design

# Okabe and Ito's colours, told apart by colour-blind readers (yellow left out: too pale for a line), then again dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", ":")
_MARKERS = "osD^vP"  # so that print without colour tells points apart
_CONTROL = {"color": "#000000", "linestyle": "-", "marker": "o"}
_ZOOM_FROM = 0.2  # share of the training left out: its losses would flatten all others into one line
_KNOWN_BAD_ROOM = 2  # how many times wider a known-bad arm may make the forest's axis
_DOTS_FROM, _DOTS_HIGH = 0.14, 0.36  # of a row: where its blocks begin under the interval, and how far they reach
_LONGEST = 28  # characters of a name in a figure


class Drawing(Figure):
    """A figure of a given size in inches, which a notebook shows where it is a cell's last value."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=100)
        return out.getvalue()


def losses(runs: pd.DataFrame, curves: pd.DataFrame, design: Design) -> Figure:
    """Validation loss against training tokens, and how it differs from the control's at the same tokens.

    Only valid finished runs are drawn: each arm's mean over seeds, in a band from its lowest to its highest seed. The
    difference is taken within blocks, where arms share their seeds: its band is as narrow as what decides.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`.
        curves: the frame of :func:`analysis.store.load.load_curves`, holding "val/loss".
        design: what was declared.
    """
    rows = len(design.compared) - 1
    drawing = Drawing(12, 4.6 + 0.25 * (rows // 5))
    left, right = drawing.subplots(1, 2)
    styles = arm_styles(design)
    points = _late_losses(runs, curves, design)
    unit = METRICS["val/loss"].unit
    draw_bands(left, points, styles, f"validation loss ({unit})")
    left.set_title(_means_of(points), fontsize=10)
    draw_bands(right, less_control(points, design, "value"), styles, f"difference ({unit})")
    within = "Less the control of the same block; band: lowest to highest block"
    right.set_title("The same, less the control's mean" if design.independent else within, fontsize=10)
    legend(drawing, left, rows + 1)
    return drawing


def _means_of(points: pd.DataFrame) -> str:
    """What a line on the left is; where arms have unequal blocks their lines differ by these too."""
    counts = points.groupby("arm")["run_key"].nunique()
    own = ", of which arms have unequal numbers" if counts.nunique() > 1 else ""
    return f"Mean over seeds{own}; band: lowest to highest seed"


def forest(table: pd.DataFrame, design: Design, runs: pd.DataFrame) -> Figure:
    """Each arm's difference from the control with its simultaneous interval, and its verdict in a word.

    Under an interval stand its blocks as dots, the first on top, in the same place in every arm: what the arms of a
    block share shows as one zigzag in several rows. Behind it, thin and grey, is the interval that independent seeds
    would give. The margin is a shaded band, the sd of the twin's differences a darker one in it, the smallest
    detectable effect of each arm a pair of grey ticks, and a difference off the axis an arrow with its value.

    Args:
        table: the frame of :func:`analysis.stats.compare.compare`.
        design: what was declared.
        runs: the frame of :func:`analysis.store.load.load_runs` that the table was made of.
    """
    arms = table[table["role"] != "control"].reset_index(drop=True)
    drawing = Drawing(9, 1.9 + 0.56 * max(1, len(arms)))
    axes = drawing.subplots()
    styles = arm_styles(design)
    dots = less_control(valid(runs), design, design.metric)
    deepest = max(1, *(len(arm.run_keys) - 1 for arm in design.compared))
    limit = _forest_limit(arms, dots, design)
    axes.axvspan(-design.margin, design.margin, color="0.92", linewidth=0)
    twin = twin_of(table, design)
    floor = float(twin["own_sd"]) if twin else np.nan
    if np.isfinite(floor):
        axes.axvspan(-floor, floor, color="0.84", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, row in enumerate(rows_of(arms)):
        style = styles[row["arm"]]
        own = dots[dots["arm"] == row["arm"]].sort_values("block")
        if design.looks and np.isfinite(row["look"]):
            own = own[own["block"] < row["look"]]  # later blocks bear on nothing
        if abs(row["delta"]) <= limit:
            depth = y + _DOTS_FROM + _DOTS_HIGH * own["block"] / deepest
            joined = "" if design.independent else "-"
            axes.plot(own[design.metric], depth, f".{joined}", color=style["color"], ms=5, linewidth=0.5, alpha=0.7)
        _draw_difference(axes, y, row, limit, style)
        axes.text(1.02, y, row["verdict"], transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set(xlim=(-limit, limit), ylim=(len(arms) - 0.35, -0.5), yticks=range(len(arms)))
    names = [f"{shorten(row['arm'])} ({counted(row)})" for row in rows_of(arms)]
    axes.set_yticklabels(names)
    axes.locator_params(axis="x", nbins=7)
    axes.set_xlabel(f"{design.metric} minus the control's ({METRICS[design.metric].unit}); lower is better")
    axes.set_title(_forest_words(design, floor), fontsize=9, loc="left")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return drawing


def _forest_words(design: Design, floor: float) -> str:
    bands = f"shaded: margin ±{design.margin:g}"
    bands += f", darker: sd of the twin ±{floor:.2g}" if np.isfinite(floor) else ""
    behind = "" if design.independent else "; thin grey: the same runs as independent seeds"
    dots = "runs less the control's mean" if design.independent else "blocks, the first on top"
    intervals = f"{100 * (1 - design.alpha):.0f} % simultaneous intervals"
    return f"{intervals}{behind}; dots: {dots}\n{bands}; ticks: smallest effect seen 4 times in 5"


def throughput(table: pd.DataFrame, design: Design, scaling: Scaling | None) -> Figure:
    """Loss against training throughput, with what the control reaches in the time that an arm takes.

    Args:
        table: the frame of :func:`analysis.stats.compare.compare`.
        design: what was declared.
        scaling: the control's loss on other budgets; None draws no line of equal time.
    """
    drawing = Drawing(9, 5)
    axes = drawing.subplots()
    styles = arm_styles(design)
    control = table.iloc[0]
    known = table[np.isfinite(table["tokens_per_s"].astype(float)) & np.isfinite(table["mean"].astype(float))]
    # Where a speed is not to be compared with the control's, there is no point to draw.
    known = known[(known["role"] == "control") | known["tokens_per_s_delta"].notna()]
    for row in known.to_dict("records"):
        style = styles[row["arm"]]
        half = (row["ci_high"] - row["ci_low"]) / 2
        ends = [(1 + row[f"tokens_per_s_{end}"]) / (1 + row["tokens_per_s_delta"]) for end in ("low", "high")]
        change = [[(1 - ends[0]) * row["tokens_per_s"]], [(ends[1] - 1) * row["tokens_per_s"]]]
        axes.errorbar(
            [row["tokens_per_s"]],
            [row["mean"]],
            xerr=change if np.isfinite(change).all() else None,
            yerr=[half] if np.isfinite(half) else None,
            fmt=style["marker"],
            color=style["color"],
            capsize=3,
            label=shorten(row["arm"]),
        )
    if np.isfinite(control["mean"]) and np.isfinite(control["tokens_per_s"]):
        axes.axhline(control["mean"], color="0.6", linewidth=0.8)
        axes.axvline(control["tokens_per_s"], color="0.6", linewidth=0.8)
        if scaling is not None:
            _draw_equal_time(axes, known, float(control["tokens_per_s"]), scaling)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="training throughput (tokens/s)", ylabel=f"{design.metric} ({METRICS[design.metric].unit})")
    axes.set_title("Bars: 95 % interval of the speed, simultaneous interval of the difference in loss", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend(drawing, axes, len(known) + 1)
    return drawing


def arm_styles(design: Design) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each arm, the same in every figure."""
    styles = {design.control.name: _CONTROL}
    for i, arm in enumerate(design.compared[1:]):
        styles[arm.name] = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": _DASHES[i // len(COLOURS) % len(_DASHES)],
            "marker": _MARKERS[(i + 1) % len(_MARKERS)],
        }
    return styles


def draw_bands(axes: Axes, points: pd.DataFrame, styles: dict[str, dict[str, Any]], label: str) -> None:
    """Mean over seeds against training tokens for each arm of ``styles``, in a band from lowest to highest seed.

    Args:
        axes: where.
        points: arm, tokens and value of each seed.
        styles: of :func:`arm_styles`.
        label: of the y axis, with its unit.
    """
    axes.set(xlabel="training tokens", ylabel=label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    typed = points.astype({"tokens": float, "value": float})
    bands = typed.groupby(["arm", "tokens"])["value"].agg(["mean", "min", "max"]).reset_index()
    for name, style in styles.items():
        band = bands[bands["arm"] == name]
        x = band["tokens"]
        axes.fill_between(x, band["min"], band["max"], color=style["color"], alpha=0.12, linewidth=0)
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        axes.plot(x, band["mean"], label=shorten(name), linewidth=1.5, **line)


def shorten(name: str) -> str:
    """A name that fits into a figure."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def legend(drawing: Figure, axes: Axes, entries: int) -> None:
    """Names of what ``axes`` shows, under the drawing, in at most five columns."""
    handles, labels = axes.get_legend_handles_labels()
    names = dict(zip(labels, handles, strict=True))
    if names:
        drawing.legend(
            names.values(), names, loc="outside lower center", ncols=min(5, entries), frameon=False, fontsize=9
        )


def valid(runs: pd.DataFrame) -> pd.DataFrame:
    """The valid finished runs of the compared arms; those of budgets are left out."""
    return runs[(runs["status"] == "FINISHED") & runs["invalid"].isna() & (runs["role"] != "budget")]


def by_block(points: pd.DataFrame, design: Design) -> pd.DataFrame:
    """``points`` with a column ``block``: the number of each row's ``run_key`` among its arm's, from 0."""
    numbers = {key: block for arm in design.arms for block, key in enumerate(arm.run_keys)}
    return points.assign(block=points["run_key"].map(numbers))


def less_control(points: pd.DataFrame, design: Design, value: str) -> pd.DataFrame:
    """The column ``value`` less the control's: of the same block or, where seeds are independent, less its mean.

    Args:
        points: a row for each run, or for each evaluation of a run where there is a column ``tokens``; with ``arm``,
            ``run_key`` and ``value``.
        design: what was declared.
        value: a column, whose unit the difference has.

    Returns:
        The rows whose block (and evaluation) the control has too, with their ``block``.
    """
    points = by_block(points, design)
    keys = [*([] if design.independent else ["block"]), *(["tokens"] if "tokens" in points else [])]
    control = points[points["arm"] == design.control.name]
    if not keys:
        return points.assign(**{value: points[value] - control[value].mean()}).dropna(subset=value)
    joined = points.merge(control.groupby(keys)[value].mean().rename("level").reset_index(), on=keys)
    return joined.assign(**{value: joined[value] - joined["level"]}).drop(columns="level")


def _late_losses(runs: pd.DataFrame, curves: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Validation losses of the compared arms' valid finished runs, after the first part of training."""
    points = curves[curves["metric"] == "val/loss"].merge(valid(runs)[["run_key", "arm"]], on=["run_key", "arm"])
    return points[points["tokens"] >= _ZOOM_FROM * points["tokens"].max()]


def _draw_difference(axes: Axes, y: float, row: dict[str, Any], limit: float, style: dict[str, Any]) -> None:
    delta, colour = row["delta"], style["color"]
    if np.isfinite(row["mde"]):
        ends = np.array([-row["mde"], row["mde"]])
        axes.plot(ends, [y - 0.18] * 2, "|", color="0.55", markersize=7, clip_on=True)
    if abs(delta) > limit:
        edge = np.sign(delta) * limit
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.5}
        axes.annotate("", (edge, y), (0.86 * edge, y), arrowprops=arrow)
        axes.text(0.84 * edge, y, f"{delta:+.3f}", va="center", ha="right" if delta > 0 else "left", fontsize=9)
    elif np.isfinite(delta):
        if np.isfinite(row["independent_half"]):
            wide = delta + np.array([-1, 1]) * row["independent_half"]
            axes.plot(wide, [y, y], color="0.6", linewidth=0.9, solid_capstyle="butt", zorder=1.5)
        half = np.array([[delta - row["ci_low"]], [row["ci_high"] - delta]])
        error = half if np.isfinite(half).all() else None
        point = {"fmt": style["marker"], "color": colour, "capsize": 3, "markersize": 5, "linewidth": 1.5}
        axes.errorbar([delta], [y], xerr=error, **point)


def _forest_limit(arms: pd.DataFrame, dots: pd.DataFrame, design: Design) -> float:
    """Half the width of the forest's axis: room for all arms, unless a known-bad one would squeeze the others."""
    known_bad = [arm.name for arm in design.arms if arm.role == "check" and arm.expect == "worse"]
    wide = pd.concat([arms["delta"] - arms["independent_half"], arms["delta"] + arms["independent_half"]])
    ends = pd.concat([*(arms[end] for end in ("delta", "ci_low", "ci_high")), wide]).astype(float)
    names = pd.concat([arms["arm"]] * 5)
    reach = pd.concat([ends.abs(), dots[design.metric].abs()]).to_numpy(float)
    bad = pd.concat([names, dots["arm"]]).isin(known_bad).to_numpy()
    room = [1.15 * float(np.max(reach, initial=0.0, where=np.isfinite(reach) & own)) for own in (~bad, bad)]
    others = max(2 * design.margin, room[0])
    return room[1] if others < room[1] <= _KNOWN_BAD_ROOM * others else others


def _draw_equal_time(axes: Axes, known: pd.DataFrame, speed: float, scaling: Scaling) -> None:
    """The loss that the control reaches in the time of an arm with that speed, as far as the arms' speeds go."""
    room = np.array([known["tokens_per_s"].min(), known["tokens_per_s"].max()]) * (0.93, 1.07)
    low, high = np.clip(room, speed / scaling.factors[-1], speed / scaling.factors[0])
    speeds = np.linspace(low, high, 101)
    text = "\n".join(textwrap.wrap("control after equal time: below the line is better per second", 34))
    axes.plot(speeds, scaling.loss(speed / speeds), color="0.35", linestyle="--", linewidth=1.2, label=text)
