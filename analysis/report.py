"""The verdict table as text, Markdown and records, and the files of a report."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import plots
from analysis.compare import compare
from analysis.schema import METRICS, Arm, Design

WORDS = {
    "better, worse": "the simultaneous interval of the difference excludes 0; lower loss is better. "
    "“within margin” is added where the interval is also inside the margin",
    "equivalent": "two one-sided tests place the difference inside the margin",
    "undecided": "neither is shown, or declared runs are missing: no evidence of no difference",
    "invalid": "a validity gate failed or the runs are not comparable; the numbers mean nothing",
    "screen": "one seed an arm: a number to plan with, no verdict",
    "as expected, differs": "a control against itself; honest ones differ as often as alpha says, and are kept",
}

_WIDTH = 150
_WHY_WIDTH = 40


def table_text(table: pd.DataFrame, design: Design) -> str:
    """The verdict table in fixed-width text of at most 150 columns: a header, a row for each arm, a bottom line.

    Args:
        table: the frame of :func:`analysis.compare.compare`.
        design: what was declared.
    """
    cells = [_titles(design)]
    for row in _records(table):
        *columns, why = _cells(row, design)
        cells.append((*columns, "; ".join(part for part in (why, row["flags"]) if part)))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *columns, why in cells:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(columns, widths, strict=True))
        wrapped = textwrap.wrap(why.replace(" %", "\N{NO-BREAK SPACE}%"), max(_WIDTH - indent, _WHY_WIDTH)) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * indent + rest for rest in wrapped[1:])]
    return "\n".join([_fold(_headline(design)), *lines, _fold(_bottom_line(table))])


def markdown(table: pd.DataFrame, design: Design, figure_name: str | None = None) -> str:
    """The report as Markdown: question, verdict table, what each arm changed and what was not matched.

    Args:
        table: the frame of :func:`analysis.compare.compare`.
        design: what was declared.
        figure_name: file name of the figure to show; ``None`` shows none.
    """
    rows = _records(table)
    parts = [
        f"# {design.name} on {design.base}",
        design.question,
        _markdown_table(_titles(design), [_cells(row, design) for row in rows]),
        f"{_headline(design)}\n\n{_bottom_line(table)}",
        f"![validation loss, and differences from the control]({figure_name})" if figure_name else "",
        "## What each arm changes",
        "\n".join(f"- **{arm.name}** ({arm.role}): {_diff(arm)}" for arm in design.arms[1:]),
        "## What was not matched",
        "\n".join(_not_matched(row) for row in rows[1:]),
        _flags(table),
        "## How to read the words",
        "\n".join(f"- *{word}*: {meaning}." for word, meaning in WORDS.items()),
        f"Source of the question: {design.source}" if design.source else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(design: Design, runs: pd.DataFrame, curves: pd.DataFrame, out_dir: Path) -> dict[str, Path]:
    """Compare the runs and write ``report.md``, ``figure.png`` and ``table.json`` (one record for each arm).

    Each file is written beside its place and then renamed into it, so that a reader never sees half of one.

    Args:
        design: what was declared.
        runs: the frame of :func:`analysis.load.load_runs`.
        curves: the frame of :func:`analysis.load.load_curves`.
        out_dir: the folder, made if absent.

    Returns:
        The files under "report", "figure" and "table".
    """
    table = compare(runs, design)
    out_dir.mkdir(parents=True, exist_ok=True)
    files = {"report": out_dir / "report.md", "figure": out_dir / "figure.png", "table": out_dir / "table.json"}
    figure = plots.figure(table, runs, curves, design)
    text = markdown(table, design, files["figure"].name)
    records = [{key: _json_value(value) for key, value in row.items()} for row in _records(table)]
    _replace(files["figure"], lambda file: figure.savefig(file, format="png", dpi=160))
    _replace(files["report"], lambda file: file.write_text(text, encoding="utf-8"))
    _replace(files["table"], lambda file: file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8"))
    return files


def _replace(file: Path, write_to: Callable[[Path], Any]) -> None:
    unfinished = file.with_name(f".{file.name}.tmp")
    write_to(unfinished)
    unfinished.replace(file)


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Lines around the table


def _headline(design: Design) -> str:
    variants = sorted({len(arm.run_keys) for arm in design.arms if arm.role == "variant"})
    seeds = [str(len(design.control.run_keys)), *(["/".join(map(str, variants))] if variants else [])]
    return " · ".join(
        [
            design.name,
            design.base,
            f"{_count(design.tokens_per_run)} tokens/run",
            design.metric,
            f"margin {design.margin:g}",
            f"declared seeds {' + '.join(seeds)}",
        ]
    )


def _bottom_line(table: pd.DataFrame) -> str:
    asked = table[table["role"] == "variant"] if (table["role"] == "variant").any() else table
    effect, control = asked["mde"].max(), table.iloc[0]
    passed, failed = int(table["n"].sum()), int(table["gates_failed"].sum())
    parts = [
        f"smallest effect this design could see {_number(effect)}" if _known(effect) else "",
        f"variances {'pool' if control['pooled'] else 'do not pool'} (Bartlett p {_p(control['pool_p'])})"
        if _known(control["pool_p"])
        else "",
        f"evaluation SE {_number(control['eval_se'])}" if _known(control["eval_se"]) else "",
        f"gates passed {passed}/{passed + failed}",
        f"runs counted {passed}/{table['declared'].sum()}",
    ]
    return " · ".join(part for part in parts if part)


# Cells


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _titles(design: Design) -> tuple[str, ...]:
    unit = METRICS[design.metric].unit.replace("nats/token", "nats")
    delta = f"delta {unit} [{100 * (1 - design.alpha):.0f} % interval]"
    return ("arm", "n", delta, "verdict", "p (adj.)", "params", "FLOPs", "tok/s", "why")


def _cells(row: dict[str, Any], design: Design) -> tuple[str, ...]:
    n = str(row["n"]) if row["n"] == row["declared"] else f"{row['n']}/{row['declared']}"
    start = (row["arm"], n, _difference(row), row["verdict"], _p(row["p_adj"]))
    if row["role"] == "control":
        arm = design.control
        costs = (_count(arm.num_params), _count(arm.flops_per_token), _count(row["tokens_per_s"]))
    else:
        costs = (_percent(row["params_delta"]), _percent(row["flops_delta"]), _speed(row))
    return (*start, *costs, row["why"])


def _difference(row: dict[str, Any]) -> str:
    if row["role"] == "control":
        spread = f", sigma {_number(row['sigma'])} (df {row['df']:.0f})" if _known(row["sigma"]) else ""
        return _number(row["mean"]) + spread
    if not _known(row["ci_low"]):
        return _number(row["delta"], "+")
    return f"{_number(row['delta'], '+')} [{_number(row['ci_low'], '+')}, {_number(row['ci_high'], '+')}]"


def _speed(row: dict[str, Any]) -> str:
    change, half = row["tokens_per_s_delta"], row["tokens_per_s_delta_half"]
    if not _known(change):
        return "–"
    return f"{100 * change:+.1f} ±{100 * half:.1f} %" if _known(half) else _percent(change)


def _known(value: float) -> bool:
    return not math.isnan(value)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if _known(value) else "–"


def _percent(value: float) -> str:
    if value == 0:
        return "0"
    return f"{100 * value:+.1f} %" if _known(value) else "–"


def _p(value: float) -> str:
    if not _known(value):
        return ""
    if value < 1e-6:
        return "<1e-6"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _count(value: float) -> str:
    if not _known(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _fold(line: str) -> str:
    return textwrap.fill(line, _WIDTH)


# Markdown


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _diff(arm: Arm) -> str:
    told = [
        f"`{path}` {_value(old)} → {_value(new)}{' (solved to match)' if path in arm.solved else ''}"
        for path, (old, new) in arm.diff.items()
    ]
    return ", ".join(told) or "nothing but the seeds"


def _value(value: Any) -> str:
    return "–" if value is None else f"`{json.dumps(value)}`"


def _not_matched(row: dict[str, Any]) -> str:
    costs = {"parameters": row["params_delta"], "FLOPs per token": row["flops_delta"]}
    told = [f"{name} {100 * change:+.2f} %" for name, change in costs.items() if change]
    if _known(row["tokens_per_s_delta"]):
        told.append(f"throughput {_speed(row)}")
    return f"- **{row['arm']}**: {', '.join(told) or 'nothing'}"


def _flags(table: pd.DataFrame) -> str:
    flagged = [f"- **{row['arm']}**: {row['flags']}" for row in _records(table) if row["flags"]]
    return "\n".join(["## Flags", "", *flagged]) if flagged else ""
