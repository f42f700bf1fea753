"""Numbers of the verdict table in words: its cells, its first and its last line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis.store.schema import Design, difference_unit

Row = dict[str, Any]  # of the frame of `analysis.stats.compare.compare`


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The table's rows as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def titles(table: pd.DataFrame, design: Design, *, programme: bool | None = None) -> tuple[str, ...]:
    """Titles of the verdict table's columns; "worth" and "decode" are left out where no arm's is known.

    Args:
        table: the frame of :func:`analysis.stats.compare.compare`.
        design: what was declared.
        programme: whether there is a column for the programme's p; None is from the control's second experiment on.
    """
    delta = f"delta {difference_unit(design.metric)} [{100 * (1 - design.alpha):.0f} % interval]"
    p = ("p (adj.)", "p (programme)") if _shown(programme, design) else ("p (adj.)",)
    worth = ("worth",) if table["worth"].notna().any() else ()
    decode = (f"decode {table['decode_at'].iloc[0]}",) if "decode_at" in table else ()
    return ("arm", "n", delta, "verdict", *p, *worth, "params", "FLOPs", "tok/s", *decode, "why")


def cells(row: Row, table: pd.DataFrame, design: Design, *, programme: bool | None = None) -> tuple[str, ...]:
    """One row of the verdict table under :func:`titles`."""
    start: tuple[str, ...] = (row["arm"], counted(row), difference(row), row["verdict"], p_value(row["p_adj"]))
    if _shown(programme, design):
        start = (*start, p_value(row["p_programme"]))
    if table["worth"].notna().any():
        start = (*start, worth(row["worth"], design))
    if row["role"] == "control":
        arm = design.control
        costs = (count(arm.num_params), count(arm.flops_per_token), count(row["tokens_per_s"]))
    else:
        costs = (percent(row["params_delta"]), percent(row["flops_delta"]), speed(row))
    return (*start, *costs, *decode(row), row["why"])


def _shown(programme: bool | None, design: Design) -> bool:
    return design.order > 1 if programme is None else programme


def counted(row: Row) -> str:
    """The blocks (runs, where independent) that count, of those declared where that is another number."""
    return str(row["n"]) if row["n"] == row["declared"] else f"{row['n']}/{row['declared']}"


def decode(row: Row) -> tuple[str, ...]:
    """The control's decode throughput, any other arm's change of it; no cell where none was measured."""
    if "decode_at" not in row:
        return ()
    return (count(row["decode_per_s"]) if row["role"] == "control" else speed(row, "decode"),)


def headline(design: Design) -> str:
    """What was declared: experiment, base, tokens, metric, margin, and blocks, looks or seeds."""
    return " · ".join(
        [
            design.name,
            design.base,
            f"{count(design.tokens_per_run)} tokens/run",
            design.metric,
            f"margin {design.margin:g}",
            declared(design),
        ]
    )


def declared(design: Design) -> str:
    """How many runs of an arm were declared, in words."""
    variants = sorted({len(arm.run_keys) for arm in design.arms if arm.role == "variant"})
    control = len(design.control.run_keys)
    if design.independent:
        return f"independent seeds {' + '.join([str(control), *(['/'.join(map(str, variants))] if variants else [])])}"
    first = f" from seed {design.first_seed}" if design.first_seed else ""
    if design.looks:
        return f"looks after {', '.join(map(str, design.looks))} blocks{first}"
    return f"declared blocks {'/'.join(map(str, variants or [control]))}{first}"


def bottom_line(table: pd.DataFrame, design: Design) -> str:
    """What the design could see, what sharing seeds gave, how many runs count, and the place in the programme."""
    asked = table[table["role"] == "variant"] if (table["role"] == "variant").any() else table.iloc[1:]
    control, twin = table.iloc[0], twin_of(table, design)
    widths = pd.Series(dtype=float) if design.independent else relative_width(asked)
    passed, failed = int(table["n"].sum()), int(table["gates_failed"].sum())
    parts = [
        _range("smallest effect this design could see {}", asked["mde"], number),
        _range("seed correlation {}", asked["correlation"], lambda r: f"{r:+.2f}"),
        _range("intervals {} as wide as independent seeds would give", widths, lambda r: f"{r:.2f}"),
        f"floor, sd of {twin['arm']}: {number(twin['own_sd'])}" if twin and known(twin["own_sd"]) else "",
        f"evaluation SE {number(control['eval_se'])}" if known(control["eval_se"]) else "",
        f"gates passed {passed}/{passed + failed}",
        f"runs counted {passed}{' of at most ' if design.looks else '/'}{table['declared'].sum()}",
        place(design) if design.order > 1 else "",
    ]
    return " · ".join(part for part in parts if part)


def finding(table: pd.DataFrame, design: Design) -> str:
    """What was found, in one sentence: every variant's verdict with its size, and whether the checks bear it out.

    "" where one block only screens, and where no arm is asked about or checked.
    """
    rows = rows_of(table)
    said = [_found(row, design) for row in rows if row["role"] == "variant"]
    checks = {arm.name: arm.expect or "" for arm in design.arms if arm.role == "check"}
    odd = [
        _odd(row, checks[row["arm"]])
        for row in rows
        if row["arm"] in checks and not _borne_out(row, checks[row["arm"]])
    ]
    if odd:
        said.append(f"believe it with care, for {' and '.join(odd)}")
    elif checks:
        said.append(f"the checks ({', '.join(checks)}) came out as expected")
    return f"Found: {'; '.join(said)}." if said and not design.screen else ""


def _borne_out(row: Row, expected: str) -> bool:
    """Whether a check's verdict is the one that its base declares."""
    return bool(row["verdict"] == ("as expected" if expected == "same" else expected))


def _odd(row: Row, expected: str) -> str:
    """A check that came out otherwise."""
    if row["verdict"] == "differs":
        return f"{row['arm']} differs from the control, as 1 in 20 honest ones do"
    return f"{row['arm']}, known to be {'the same' if expected == 'same' else expected}, is {row['verdict']}"


def _found(row: Row, design: Design) -> str:
    """One variant's part of :func:`finding`."""
    arm, verdict = row["arm"], row["verdict"]
    if verdict in ("better", "worse"):
        low, high = sorted((abs(row["ci_low"]), abs(row["ci_high"])))
        size = f"{number(abs(row['delta']))} {difference_unit(design.metric)}"
        return f"{arm} is {verdict} than the control by {size} ({number(low)} to {number(high)})"
    if verdict == "equivalent":
        return f"{arm} is equivalent to the control within {design.margin:g} {difference_unit(design.metric)}"
    if verdict == "undecided" and known(row["ci_low"]):
        return f"{arm} is undecided, between {number(row['ci_low'], '+')} and {number(row['ci_high'], '+')}"
    return f"{arm} is {verdict}"


def _range(words: str, values: pd.Series, form: Callable[[float], str]) -> str:
    """``words`` around the least and the greatest of the known ``values``; "" where none is."""
    texts = list(dict.fromkeys(map(form, (values.min(), values.max())))) if values.notna().any() else []
    return words.format(" to ".join(texts)) if texts else ""


def relative_width(table: pd.DataFrame) -> pd.Series:
    """Width of each interval over what it would be, had the same runs had seeds of their own; NaN if unknown."""
    return (table["ci_high"] - table["ci_low"]) / 2 / table["independent_half"]


def twin_of(table: pd.DataFrame, design: Design) -> Row | None:
    """The row of the control with its initial values moved in their last bits, where the base has such a check."""
    names = [arm.name for arm in design.arms if arm.role == "check" and arm.expect == "same"]
    rows = [row for row in rows_of(table) if row["arm"] in names]
    return rows[0] if rows and not design.independent else None


def place(design: Design) -> str:
    """Which experiment this is of those that the control has served, and what that costs."""
    ordinal = {1: "st", 2: "nd", 3: "rd"}.get(design.order % 10 if design.order % 100 not in (11, 12, 13) else 0, "th")
    return (
        f"the {design.order}{ordinal} experiment that this control has served: p (programme) is p (adj.) times "
        f"{design.order} x {design.order + 1}"
    )


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
    """The control's mean and its sd between seeds; any other arm's difference and its interval."""
    if row["role"] == "control":
        return number(row["mean"]) + (f", seed sd {number(row['sigma'])}" if known(row["sigma"]) else "")
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
