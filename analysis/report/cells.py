"""Numbers of the verdict table in words: its cells, its first and its last line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.store.schema import Design, difference_unit

Row = dict[str, Any]  # of the frame of `analysis.stats.compare.compare`


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The table's rows as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def titles(table: pd.DataFrame, design: Design) -> tuple[str, ...]:
    """Titles of the verdict table's columns; "worth" and "decode" are left out where no arm's is known."""
    delta = f"delta {difference_unit(design.metric)} [{100 * (1 - design.alpha):.0f} % interval]"
    worth = ("worth",) if table["worth"].notna().any() else ()
    decode = (f"decode {table['decode_at'].iloc[0]}",) if "decode_at" in table else ()
    return ("arm", "n", delta, "verdict", "p (adj.)", *worth, "params", "FLOPs", "tok/s", *decode, "why")


def cells(row: Row, table: pd.DataFrame, design: Design) -> tuple[str, ...]:
    """One row of the verdict table under :func:`titles`."""
    n = str(row["n"]) if row["n"] == row["declared"] else f"{row['n']}/{row['declared']}"
    start: tuple[str, ...] = (row["arm"], n, difference(row), row["verdict"], p_value(row["p_adj"]))
    if table["worth"].notna().any():
        start = (*start, worth(row["worth"], design))
    if row["role"] == "control":
        arm = design.control
        costs = (count(arm.num_params), count(arm.flops_per_token), count(row["tokens_per_s"]))
    else:
        costs = (percent(row["params_delta"]), percent(row["flops_delta"]), speed(row))
    return (*start, *costs, *decode(row), row["why"])


def decode(row: Row) -> tuple[str, ...]:
    """The control's decode throughput, any other arm's change of it; no cell where none was measured."""
    if "decode_at" not in row:
        return ()
    return (count(row["decode_per_s"]) if row["role"] == "control" else speed(row, "decode"),)


def headline(design: Design) -> str:
    """What was declared: experiment, base, tokens, metric, margin and seeds."""
    variants = sorted({len(arm.run_keys) for arm in design.arms if arm.role == "variant"})
    seeds = [str(len(design.control.run_keys)), *(["/".join(map(str, variants))] if variants else [])]
    return " · ".join(
        [
            design.name,
            design.base,
            f"{count(design.tokens_per_run)} tokens/run",
            design.metric,
            f"margin {design.margin:g}",
            f"declared seeds {' + '.join(seeds)}",
        ]
    )


def bottom_line(table: pd.DataFrame) -> str:
    """What the design could see, whether variances pool, and how many gates were passed."""
    asked = table[table["role"] == "variant"] if (table["role"] == "variant").any() else table
    effect, control = asked["mde"].max(), table.iloc[0]
    passed, failed = int(table["n"].sum()), int(table["gates_failed"].sum())
    parts = [
        f"smallest effect this design could see {number(effect)}" if known(effect) else "",
        f"variances {'pool' if control['pooled'] else 'do not pool'} ({min(equal_variances(control.to_dict()))[1]})"
        if known(control["pool_p"])
        else "",
        f"evaluation SE {number(control['eval_se'])}" if known(control["eval_se"]) else "",
        f"gates passed {passed}/{passed + failed}",
        f"runs counted {passed}/{table['declared'].sum()}",
    ]
    return " · ".join(part for part in parts if part)


def equal_variances(row: Mapping[Any, Any]) -> list[tuple[float, str]]:
    """The tests of equal variances that were made, each with its p, and in words."""
    tests = (("Bartlett p", row["pool_p"]), ("control's F p", row["control_p"]))
    return [(p, f"{name} {p_value(p)}") for name, p in tests if known(p)]


def known(value: float) -> bool:
    """Whether there is such a number."""
    return not math.isnan(value)


def number(value: float, sign: str = "") -> str:
    """Four decimals; "–" for what is not known."""
    return f"{value:{sign}.4f}" if known(value) else "–"


def interval(low: float, high: float, sign: str = "+") -> str:
    """In brackets."""
    return f"[{number(low, sign)}, {number(high, sign)}]" if known(low) else "–"


def difference(row: Row) -> str:
    """The control's mean and sigma; any other arm's difference and its interval."""
    if row["role"] == "control":
        spread = f", sigma {number(row['sigma'])} (df {row['df']:.0f})" if known(row["sigma"]) else ""
        return number(row["mean"]) + spread
    if not known(row["ci_low"]):
        return number(row["delta"], "+")
    return f"{number(row['delta'], '+')} {interval(row['ci_low'], row['ci_high'])}"


def percent(value: float) -> str:
    """A fraction as a signed percentage."""
    if value == 0:
        return "0"
    return f"{100 * value:+.1f} %" if known(value) else "–"


def speed(row: Row, which: str = "tokens_per_s") -> str:
    """The change of a throughput and its interval, in per cent."""
    change, low, high = (row[f"{which}_{end}"] for end in ("delta", "low", "high"))
    if not known(change):
        return "–"
    return f"{100 * change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] %" if known(low) else percent(change)


def worth(value: float, design: Design) -> str:
    """What a difference is worth in data; beyond the budgets that ran, the outermost of them."""
    if not known(value):
        return ""
    if math.isinf(value):
        factors = [1.0, *(arm.tokens / design.tokens_per_run for arm in design.budgets if arm.tokens)]
        return f"> {percent(max(factors) - 1)} data" if value > 0 else f"< {percent(min(factors) - 1)} data"
    return f"{100 * value:+.0f} % data"


def p_value(value: float) -> str:
    """A probability to two or three digits."""
    if not known(value):
        return ""
    if value < 1e-6:
        return "<1e-6"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def count(value: float) -> str:
    """Four digits and a letter: 134.5M."""
    if not known(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
