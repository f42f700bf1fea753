"""Figures of throughput measurements: records of `python -m runners bench`, as its JSON files have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.report.figures import COLOURS, Drawing

Record = Mapping[str, Any]


def figure(record: Record) -> Figure | None:
    """The figure of a record, by what was measured; None where numbers say it all.

    ``peers``: tokens/s of each contender, and its share of the card's peak where that is known. ``blocks``: tokens/s
    over the control's. ``scaling``: tokens/s and memory against micro-batch, window and layers. ``decode``: tokens/s
    of each variant against context, a panel for each batch.
    """
    draw = {"peers": _peers, "blocks": _blocks, "scaling": _scaling, "decode": _decode}.get(record["what"])
    return draw(record) if draw else None


def _peers(record: Record) -> Figure:
    rows = record["rows"]
    drawing = Drawing(9, 1.4 + 0.5 * len(rows))
    axes = drawing.subplots()
    _points(axes, [row["name"] for row in rows], [(r["tokens_per_s"], r["low"], r["high"]) for r in rows])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training throughput (tokens/s); bars: 95 % interval over rounds")
    if all("mfu_palm" in row for row in rows):
        share = rows[0]["mfu_palm"] / rows[0]["tokens_per_s"]
        above = axes.secondary_xaxis(
            "top", functions=(lambda x: np.multiply(x, 100 * share), lambda x: np.divide(x, 100 * share))
        )
        above.set_xlabel("model FLOPs utilisation, PaLM's convention (% of the card's peak in bfloat16)")
    axes.set_title(_title(record), fontsize=10)
    return drawing


def _blocks(record: Record) -> Figure:
    rows = sorted(record["rows"], key=lambda row: float(row["ratio"]))
    drawing = Drawing(9, 1.4 + 0.28 * len(rows))
    axes = drawing.subplots()
    _points(axes, [row["name"] for row in rows], [(r["ratio"], r["ratio_low"], r["ratio_high"]) for r in rows])
    axes.axvline(1, color="#000000", linewidth=0.8)
    axes.set_xlabel("tokens/s over the control's in the same round; bars: 95 % interval; right is faster")
    axes.set_title(_title(record), fontsize=10)
    return drawing


def _points(axes: Axes, names: Sequence[str], values: Sequence[tuple[float, float, float]]) -> None:
    places = np.arange(len(names))[::-1]
    middle, low, high = (np.array(column, float) for column in zip(*values, strict=True))
    axes.errorbar(
        middle,
        places,
        xerr=np.abs(np.nan_to_num(np.array([middle - low, high - middle]))),
        fmt="o",
        color=COLOURS[0],
        capsize=3,
    )
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", linewidth=0.4)


def _scaling(record: Record) -> Figure:
    names = list(dict.fromkeys(row["axis"] for row in record["rows"]))
    drawing = Drawing(4 * len(names), 6)
    panels = drawing.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        rows = [row for row in record["rows"] if row["axis"] == name]
        points = [row["point"] for row in rows]
        speed, memory = panels[0, column], panels[1, column]
        middle = np.array([row["tokens_per_s"] for row in rows])
        ends = np.abs([middle - [row["low"] for row in rows], [row["high"] for row in rows] - middle])
        speed.errorbar(points, middle, yerr=np.nan_to_num(ends), marker="o", capsize=3, color=COLOURS[0])
        memory.plot(points, [row["peak_memory_bytes"] / 2**30 for row in rows], marker="s", color=COLOURS[1])
        for axes in (speed, memory):
            axes.set_xscale("log", base=2)
            axes.set_xticks(points, [str(point) for point in points])
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
            axes.grid(linewidth=0.4)
        speed.yaxis.set_major_formatter(EngFormatter(sep=""))
        memory.set_xlabel(name)
    panels[0, 0].set_ylabel("throughput (tokens/s)")
    panels[1, 0].set_ylabel("peak memory (GiB)")
    drawing.suptitle(_title(record), fontsize=10)
    return drawing


def _decode(record: Record) -> Figure:
    rows = record["rows"]
    batches, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("batch", "name"))
    contexts = sorted({row["context"] for row in rows})
    drawing = Drawing(1 + 4.5 * len(batches), 4.5)
    panels = drawing.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for place, name in enumerate(names):
            own = [row for row in rows if (row["batch"], row["name"]) == (batch, name)]
            middle = np.array([row["tokens_per_s"] for row in own])
            ends = np.abs([middle - [row["low"] for row in own], [row["high"] for row in own] - middle])
            # Side by side, or the bars of one variant would hide another's.
            beside = 2 ** (0.06 * (place - (len(names) - 1) / 2))
            points = [row["context"] * beside for row in own]
            style = {"color": "#000000"} if name == "control" else {"color": COLOURS[(place - 1) % len(COLOURS)]}
            axes.errorbar(points, middle, yerr=ends, marker="os^Dvp"[place % 6], capsize=3, label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("context (tokens)")
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.grid(linewidth=0.4)
    panels[0].set_ylabel("decode (tokens/s of the batch)")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=9)
    bars = f"bars: 95 % interval over {record['rounds']} rounds"
    drawing.suptitle(f"{record['base']} on {record['device']}, {record['precision']}; {bars}", fontsize=10)
    return drawing


def _title(record: Record) -> str:
    return (
        f"{record['base']} on {record['device']}, {record['tokens_per_step']:,} tokens a step in windows of "
        f"{record['seq_len']:,}, {record['precision']}, {record['rounds']} rounds"
    )
