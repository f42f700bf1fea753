"""What a report says, section by section: verdicts, costs, statistics, validity, the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.report.cells import (
    Row,
    bottom_line,
    cells,
    count,
    decode,
    finding,
    headline,
    interval,
    known,
    number,
    p_value,
    percent,
    rows_of,
    speed,
    titles,
    worth,
)
from analysis.report.decode import Decode
from analysis.report.probes import drawn, explained, probe_table
from analysis.report.render import Code, Items, Part, Picture, Section, Table
from analysis.report.statistics import WORDS, statistics
from analysis.stats.compare import compare, decided
from analysis.stats.secondary import ItemValues, secondary
from analysis.stats.solved import SOLVED, has_task, solved
from analysis.stats.worth import Scaling
from analysis.store.schema import Arm, Design, difference_unit
from analysis.store.stratum import Stratum

WORTH = (
    "The control was also trained, and decayed, on other numbers of tokens. Between them its loss is interpolated in "
    "the logarithm of the tokens; an arm's loss is worth the data with which the control reaches it, and the interval "
    "holds the numbers of tokens from which the arm cannot be told, block by block."
)


DECODE = (
    "decode: tokens/s that generation adds to a batch of so many rows x tokens of context, as `make bench WHAT=decode` "
    "measured it on this device, with untrained weights; and the change over the control, with a 95 % interval over "
    "rounds."
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of an experiment declared, and its runs: the first, or the one on fresh blocks that confirms it.

    What is computed from them is computed once, whoever asks for it.
    """

    design: Design
    runs: pd.DataFrame  # of analysis.load.load_runs
    curves: pd.DataFrame  # of analysis.load.load_curves, holding "val/loss"
    decode: Decode | None = None  # where the bench measured it on this base and device
    items: ItemValues = field(default_factory=dict)  # what probes and tasks gave on each window or item

    @cached_property
    def table(self) -> pd.DataFrame:
        """The verdicts: the frame of :func:`analysis.stats.compare.compare`, beside what was measured of decode."""
        table = compare(self.runs, self.design)
        return self.decode.beside(table) if self.decode else table

    @cached_property
    def probes(self) -> pd.DataFrame:
        """What probes measured after the runs were done: the frame of :func:`analysis.stats.secondary.secondary`."""
        return secondary(self.runs, self.design, items=self.items)

    @cached_property
    def scaling(self) -> Scaling | None:
        """The control's loss at several budgets, where they ran."""
        return Scaling.of(self.runs, self.design)


def sections(stage: Stage, table: pd.DataFrame, scaling: Scaling | None, prefix: str, several: bool) -> list[Section]:
    """What is said of one stage."""
    design = stage.design
    rows = rows_of(table)
    level = 3 if several else 2
    intro = "" if design.confirms else design.question
    stage_title = ""
    if several:
        stage_title = "To confirm, on fresh blocks" if design.confirms else "As declared"
        if design.confirms:
            intro = (
                "What the first stage showed, asked once more on seeds that it did not use, the control's too. "
                "The stages are judged apart and never pooled; this one has the last word."
            )
    verdicts: list[Part] = [
        intro,
        f"Source: {design.source}" if design.source and not design.confirms else "",
        finding(table, design),
        headline(design),
        Table(titles(table, design), [cells(row, table, design) for row in rows]),
        bottom_line(table, design),
        Items([(row["arm"], _sentence(row, design)) for row in rows if row["role"] != "control"]),
    ]
    band = (
        f"Validation loss against training tokens (left), and its difference from the control{_within(design)} (right)."
    )
    interval_words = (
        f"Differences from the control{_within(design)} with their simultaneous intervals; {_dots(design)}."
    )
    return [
        Section(stage_title, [part for part in verdicts if part]),
        Section("Losses", [Picture(f"{prefix}losses", band)], level),
        Section("Differences", [Picture(f"{prefix}forest", interval_words)], level),
        Section("Speed and loss", _speed_parts(rows, prefix, scaling), level),
        Section(
            "What each arm changes", [Items([(f"{a.name} ({a.role})", _diff(a)) for a in design.compared[1:]])], level
        ),
        Section("Costs", _costs(rows, stage), level),
        *([Section("Task", _task_parts(stage), level)] if has_task(stage.runs) else []),
        *([Section("Probes", _probe_parts(stage, prefix), level)] if len(stage.probes) else []),
        *(
            [Section("What a difference is worth in data", _worth_parts(rows, design, scaling), level)]
            if scaling
            else []
        ),
        Section("Statistics", statistics(rows, design), level),
        Section("Validity", _validity(rows, stage), level),
        Section("Runs", [_runs_table(stage)], level),
    ]


def closing(stages: Sequence[Stage], reproduce: str) -> list[Section]:
    """What holds for all stages."""
    runs = pd.concat([stage.runs for stage in stages])
    finished = runs[runs["status"] == "FINISHED"]
    made = [(f"{n} runs", str(Stratum.parse(str(text)))) for text, n in finished["stratum"].value_counts().items()]
    data = ", ".join(sorted(set(finished["data"]) - {""})) or "not recorded"
    environment: list[Part] = [Items([*((name, str(text)) for name, text in made), ("data fingerprint", data)])]
    return [
        Section("Environment", environment),
        *([Section("How to reproduce", [Code(reproduce)])] if reproduce else []),
        Section("How to read the words", [Items(list(WORDS.items()))]),
    ]


def _within(design: Design) -> str:
    return "'s mean" if design.independent else " within blocks"


def _dots(design: Design) -> str:
    """What the dots of the forest plot are, and the line behind an interval."""
    if design.independent:
        return "dots: runs"
    return "dots: blocks, the first on top; grey line: the interval that independent seeds would give the same runs"


def _sentence(row: Row, design: Design) -> str:
    unit = difference_unit(design.metric)
    if not known(row["ci_low"]):
        return f"{row['verdict']}: {row['why']}"
    size = f"{number(abs(row['delta']))} {unit} {'above' if row['delta'] > 0 else 'below'} the control"
    told = f"{row['verdict']}: {size}, interval {interval(row['ci_low'], row['ci_high'])}"
    if known(row["worth"]):
        told += f"; worth {worth(row['worth'], design)}"
    return "; ".join(part for part in (told, row["why"], row["flags"]) if part)


def _speed_parts(rows: Sequence[Row], prefix: str, scaling: Scaling | None) -> list[Part]:
    line = (
        " The dashed line is what the control reaches in the time that an arm of that speed takes." if scaling else ""
    )
    caption = f"Loss against training throughput.{line}"
    told = [
        (
            row["arm"],
            f"{row['iso_verdict']}: {number(row['iso_delta'], '+')} {interval(row['iso_low'], row['iso_high'])}",
        )
        for row in rows
        if row["iso_verdict"]
    ]
    note = "Speeds are those of the runs themselves: whatever else the machine did meanwhile is in them."
    return [Picture(f"{prefix}throughput", caption), note, *([Items(told)] if told else [])]


def _task_parts(stage: Stage) -> list[Part]:
    heads = ("arm", "solved", "accuracy: median [range]", "steps to solve", "p", "p (adj.)", "than the control")
    lines = [
        (
            row["arm"],
            f"{row['solved']} of {row['n']}",
            f"{row['median']:.3f} [{row['lowest']:.3f}, {row['highest']:.3f}]",
            f"{row['steps']:,.0f}" if math.isfinite(row["steps"]) else "–",
            p_value(row["p"]) or "–",
            p_value(row["p_adj"]) or "–",
            row["word"],
        )
        for row in rows_of(solved(stage.runs, stage.curves, stage.design))
    ]
    words = (
        f"A run solves the task where {SOLVED:g} of the certain answers are the likeliest token. Most runs either "
        "solve it or guess, so runs that solve it are counted (Fisher's exact test, Holm), and no means are compared."
    )
    return [words, Table(heads, lines)]


def _probe_parts(stage: Stage, prefix: str) -> list[Part]:
    caption = "Loss less the control's by position and past the training length, with simultaneous intervals."
    picture = [Picture(f"{prefix}probes", caption)] if drawn(stage.runs) else []
    return [explained(stage.probes, stage.design), *picture, probe_table(stage.probes, stage.design)]


def _diff(arm: Arm) -> str:
    told = [
        f"{path} {_value(old)} → {_value(new)}{' (solved to match)' if path in arm.solved else ''}"
        for path, (old, new) in arm.diff.items()
    ]
    return ", ".join(told) or "nothing but the seeds"


def _value(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def _costs(rows: Sequence[Row], stage: Stage) -> list[Part]:
    control = stage.design.control
    memory = stage.runs.loc[stage.runs["arm"] == control.name, "final/peak_memory_bytes"].mean()
    at = [f"decode {rows[0]['decode_at']}"] if "decode_at" in rows[0] else []
    heads = ("arm", "parameters", "FLOPs/token", "peak memory", "tokens/s", *at, "not matched")
    lines = [
        (
            control.name,
            f"{control.num_params:,}",
            f"{control.flops_per_token:,}",
            f"{memory / 1e6:,.0f} MB" if known(memory) else "–",
            count(rows[0]["tokens_per_s"]),
            *decode(rows[0]),
            "",
        )
    ]
    for row in rows[1:]:
        changes = {"parameters": row["params_delta"], "FLOPs": row["flops_delta"]}
        unmatched = ", ".join(name for name, change in changes.items() if change) or "nothing"
        costs = (f"{100 * row['params_delta']:+.2f} %", f"{100 * row['flops_delta']:+.2f} %")
        lines.append((row["arm"], *costs, percent(row["memory_delta"]), speed(row), *decode(row), unmatched))
    return [Table(heads, lines), *([DECODE] if at else [])]


def _worth_parts(rows: Sequence[Row], design: Design, scaling: Scaling) -> list[Part]:
    sds = [losses.std(ddof=1) if losses.size > 1 else math.nan for losses in scaling.losses]
    budgets = [
        (f"{factor:g}x", count(factor * design.tokens_per_run), str(losses.size), number(losses.mean()), number(sd))
        for factor, losses, sd in zip(scaling.factors, scaling.losses, sds, strict=True)
    ]
    told = [
        (
            row["arm"],
            worth(row["worth"], design),
            f"{worth(row['worth_low'], design)} to {worth(row['worth_high'], design)}",
        )
        for row in rows
        if known(row["worth"])
    ]
    parts: list[Part] = [WORTH, Table(("control on", "tokens", "blocks", "mean", "sd"), budgets)]
    return [*parts, Table(("arm", "worth", "interval"), told)] if told else parts


def _validity(rows: Sequence[Row], stage: Stage) -> list[Part]:
    runs = stage.runs
    broken = runs[runs["invalid"].notna()]
    told = [
        (f"{arm} seed {seed}", str(why))
        for arm, seed, why in zip(broken["arm"], broken["seed"], broken["invalid"], strict=True)
    ]
    told += [(row["arm"], row["flags"]) for row in rows if row["flags"]]
    finished = runs[(runs["status"] == "FINISHED") & runs["invalid"].isna()].groupby("arm").size()
    missing, done = [], decided(stage.table, stage.design)
    for row in rows:
        left = row["declared"] - finished.get(row["arm"], 0) - row["gates_failed"]
        if left > 0:
            early = stage.design.looks and row["arm"] in done and known(row["look"])
            why = f", decided after {row['look']:.0f}" if early else ""
            missing.append((row["arm"], f"{left} of {row['declared']} declared runs not finished{why}"))
    passed = sum(finished.get(row["arm"], 0) for row in rows)
    failed = sum(row["gates_failed"] for row in rows)
    summary = f"{passed} of {passed + failed} finished runs passed every gate; outliers are flagged, never left out."
    return [summary, *([Items(told + missing)] if told or missing else [])]


def _runs_table(stage: Stage) -> Table:
    heads = ("arm", "seed", "status", stage.design.metric, "tokens/s", "started (UTC)", "run", "MLflow run")
    columns = [
        "arm",
        "seed",
        "status",
        stage.design.metric,
        "final/tokens_per_s",
        "started",
        "run_key",
        "mlflow_run_id",
    ]
    lines = [
        (
            arm,
            str(seed),
            status,
            f"{loss:.6f}",
            count(rate),
            f"{started:%Y-%m-%d %H:%M}" if pd.notna(started) else "–",
            key,
            run,
        )
        for arm, seed, status, loss, rate, started, key, run in stage.runs[columns].itertuples(index=False, name=None)
    ]
    return Table(heads, lines, summary=f"{len(lines)} runs")
