"""The verdicts as text for a terminal, as Markdown, and as one HTML page with its figures."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.report import figures, render
from analysis.report.cells import Row, bottom_line, cells, finding, headline, markdown_table, rows_of, titles
from analysis.report.probes import drawn, probe_figure
from analysis.report.render import Section
from analysis.report.sections import Stage, closing, sections
from analysis.store.schema import Design

_WIDTH = 150
_WHY_WIDTH = 40


def table_text(table: pd.DataFrame, design: Design) -> str:
    """The verdict table in fixed-width text of at most 150 columns: a header, a row for each arm, a bottom
    line, and what was found.

    Args:
        table: the frame of :func:`analysis.stats.compare.compare`.
        design: what was declared.
    """
    lines_of = [titles(table, design)]
    for row in rows_of(table):
        *columns, why = cells(row, table, design)
        lines_of.append((*columns, "; ".join(part for part in (why, row["flags"]) if part)))
    widths = [max(len(row[i]) for row in lines_of) for i in range(len(lines_of[0]) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *columns, why in lines_of:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(columns, widths, strict=True))
        wrapped = textwrap.wrap(why.replace(" %", "\N{NO-BREAK SPACE}%"), max(_WIDTH - indent, _WHY_WIDTH)) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * indent + rest for rest in wrapped[1:])]
    end = [_fold(line) for line in (bottom_line(table, design), finding(table, design)) if line]
    return "\n".join([_fold(headline(design)), *lines, *end])


def summary_markdown(table: pd.DataFrame, design: Design) -> str:
    """Question and verdict table in Markdown: what the tracking store shows beside the runs."""
    rows = [[render.plain(cell) for cell in cells(row, table, design)] for row in rows_of(table)]
    parts = [
        f"# {render.plain(_title(design))}",
        render.plain(design.question),
        render.plain(finding(table, design)),
        markdown_table(titles(table, design), rows),
        f"{headline(design)}\n\n{bottom_line(table, design)}",
    ]
    return "\n\n".join(parts) + "\n"


def write(stages: Sequence[Stage], out_dir: Path, *, reproduce: str = "") -> dict[str, Path]:
    """Compare the runs and write the report: ``report.html``, ``report.md``, ``table.json``, ``runs.csv``, figures.

    The page holds its figures, and needs no other file and no network. ``table.json`` has a record for each arm of each
    stage, ``runs.csv`` all runs with their final metrics. Each file is written beside its place and then renamed into
    it, so that a reader never sees half of one.

    Args:
        stages: the declared experiment and, where there is one, its confirmation.
        out_dir: the folder, made if absent.
        reproduce: what to type to have the same runs again.

    Returns:
        The files under "report", "markdown", "table", "runs", and each figure under its name.
    """
    parts: list[Section] = []
    records: list[Row] = []
    drawings: dict[str, Figure] = {}
    for stage in stages:
        table, scaling = stage.table, stage.scaling
        prefix = "confirm-" if stage.design.confirms else ""
        drawings[f"{prefix}losses"] = figures.losses(stage.runs, stage.curves, stage.design)
        drawings[f"{prefix}forest"] = figures.forest(table, stage.design, stage.runs)
        drawings[f"{prefix}throughput"] = figures.throughput(table, stage.design, scaling)
        if drawn(stage.runs):
            drawings[f"{prefix}probes"] = probe_figure(stage.probes, stage.runs, stage.design)
        parts += sections(stage, table, scaling, prefix, len(stages) > 1)
        which = {"stage": "confirm" if stage.design.confirms else "declared"}
        records += [which | {key: _json_value(value) for key, value in row.items()} for row in rows_of(table)]
    parts += closing(stages, reproduce)
    title = f"{stages[0].design.name} on {stages[0].design.base}"
    vectors = {name: _drawn(drawing, "svg") for name, drawing in drawings.items()}
    runs = pd.concat([stage.runs.assign(confirms=stage.design.confirms) for stage in stages])
    contents = {
        "report": ("report.html", render.page(title, parts, vectors).encode()),
        "markdown": (
            "report.md",
            render.markdown(title, parts, {name: f"{name}.png" for name in drawings}).encode(),
        ),
        "table": ("table.json", json.dumps(records, indent=2).encode() + b"\n"),
        "runs": ("runs.csv", runs.to_csv(index=False).encode()),
        **{name: (f"{name}.png", _drawn(drawing, "png")) for name, drawing in drawings.items()},
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    for file_name, content in contents.values():
        unfinished = out_dir / f".{file_name}.tmp"
        unfinished.write_bytes(content)
        unfinished.replace(out_dir / file_name)
    return {name: out_dir / file_name for name, (file_name, _) in contents.items()}


def _drawn(drawing: Figure, form: str) -> bytes:
    out = io.BytesIO()
    # No date and fixed ids: the same runs give the same page.
    metadata = {"Date": None} if form == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        drawing.savefig(out, format=form, dpi=160, metadata=metadata)
    return out.getvalue()


def _json_value(value: Any) -> Any:
    """JSON has no number for what is not known (null), nor for what lies beyond all budgets ("inf", "-inf")."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _fold(line: str) -> str:
    return textwrap.fill(line, _WIDTH)


def _title(design: Design) -> str:
    return f"{design.name} on {design.base}{': confirmation on fresh blocks' if design.confirms else ''}"
