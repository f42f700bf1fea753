"""`power`: which effect how many blocks can show, given how far differences scatter."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import RUNS, Context, OnExperiment, add_experiment, add_json, nats, read_plan, verb
from runners.verbs.effects import layout, smallest_effect, spread, unknown

if TYPE_CHECKING:
    from runners.planning.plan import Plan

NUMBERS = (2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which experiment, and which effect is asked about."""

    effect: float | None  # nats; the margin where none is given
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("--effect", type=nats, metavar="NATS", help="how many blocks it takes (default: the margin)")
    add_json(parser)


def power(options: Options, context: Context) -> int:
    """Print the table."""
    found = blocks_and_effects(read_plan(options), RUNS, options.effect)
    print(json.dumps(asdict(found), indent=1) if options.as_json else effects_text(found, options.effect is None))
    return 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a number of blocks shows: at the typical sd, and at the ends of where it may lie; None for nothing."""

    blocks: int
    effect: float | None
    effect_low: float | None
    effect_high: float | None


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Effects in the metric's unit by number of blocks, and the number that one effect takes."""

    name: str
    base: str
    metric: str
    alpha: float
    power: float
    blocks: int  # of the control, as declared
    num_variants: int
    independent: bool  # blocks are then runs of each variant, beside those of the control
    looks: tuple[int, ...]
    sd: float
    sd_low: float
    sd_high: float
    sd_df: float
    sd_source: str
    rows: tuple[Row, ...]
    effect: float  # that is asked about
    blocks_needed: int | None  # judged once; None where no number of blocks will do
    blocks_needed_low: int | None  # at the ends of where the sd may lie
    blocks_needed_high: int | None


def blocks_and_effects(plan: Plan, root: Path, effect: float | None) -> Effects:
    """Which true effect how many blocks show, and how many blocks ``effect`` takes (None: the margin).

    By the spread that `plan` goes by too (:func:`runners.verbs.effects.spread`).

    Raises:
        ConfigError: when that is not known.
    """
    from analysis.stats.power import blocks_needed
    from llama_variants.errors import ConfigError, Problem
    from runners.planning.files import MAX_BLOCKS

    decide = plan.decide
    known = spread(plan, root)
    if known is None:
        allowed = "one with its df and its source; or finished runs"
        path = ("decide", "seed" if plan.independent else "difference")
        raise ConfigError([Problem(path=path, received="nothing", allowed=allowed)], title=unknown(plan))
    wanted = decide.margin if effect is None else effect
    sds = (known.sd, known.low, known.high)
    needed = [blocks_needed(wanted, sd, layout(plan, plan.blocks), MAX_BLOCKS) for sd in sds]
    rows = []
    for n in sorted({*NUMBERS, *plan.looks, *_declared(plan)}):
        typical, low, high = (smallest_effect(plan, sd, n) for sd in sds)
        rows.append(Row(blocks=n, effect=typical, effect_low=low, effect_high=high))
    return Effects(
        name=plan.name,
        base=plan.base,
        metric=decide.metric,
        alpha=decide.alpha,
        power=0.8,
        blocks=plan.blocks,
        num_variants=layout(plan, plan.blocks).family,
        independent=plan.independent,
        looks=plan.looks,
        sd=known.sd,
        sd_low=known.low,
        sd_high=known.high,
        sd_df=known.df,
        sd_source=known.source,
        rows=tuple(rows),
        effect=wanted,
        blocks_needed=needed[0],
        blocks_needed_low=needed[1],
        blocks_needed_high=needed[2],
    )


def _declared(plan: Plan) -> set[int]:
    """Numbers of blocks (runs, where independent) that variants have, but for a screen's."""
    return {len(arm.runs) for arm in plan.arms if arm.role == "variant" and len(arm.runs) > 1}


def effects_text(found: Effects, by_margin: bool) -> str:
    """The table for a terminal; ``by_margin``: the effect that is asked about is the margin."""
    from analysis.store.schema import difference_unit
    from runners.planning.files import MAX_BLOCKS

    ranged = found.sd_low < found.sd_high
    variants = f"{found.num_variants} variant{'s' if found.num_variants > 1 else ''}"
    if found.independent:
        counted, what = "runs of each variant", "sd between seeds"
        declared, enough = f"{found.blocks} runs of the control", "runs of each variant"
    else:
        counted, what = "blocks", "sd of a difference within a block"
        declared, enough = f"{found.blocks} blocks declared", "blocks"
    looks = f", looks after {', '.join(map(str, found.looks))}" if found.looks else ""
    ends = f", from {found.sd_low:.4f} to {found.sd_high:.4f}" if ranged else ""
    heads = (*(counted, "smallest effect seen 4 times in 5"), *(("at the low sd", "at the high sd") if ranged else ()))
    table = [heads]
    for row in found.rows:
        cells = (row.effect, *((row.effect_low, row.effect_high) if ranged else ()))
        table.append((str(row.blocks), *("none" if cell is None else f"{cell:.4f}" for cell in cells)))

    def number(needed: int | None) -> str:
        return f"more than {MAX_BLOCKS}" if needed is None else str(needed)

    low, high = number(found.blocks_needed_low), number(found.blocks_needed_high)
    span = f" ({low} at the low sd, {high} at the high one)" if ranged else ""
    lines = [
        f"{found.name} · {found.base} · {found.metric} · {declared}, {variants}{looks}",
        f"{what} {found.sd:.4f}{ends} ({found.sd_source})",
        "",
        *("   ".join(cell.rjust(len(head)) for cell, head in zip(line, heads, strict=True)) for line in table),
        "",
        f"an effect of {found.effect:g} {difference_unit(found.metric)}{' (the margin)' if by_margin else ''} takes "
        f"{number(found.blocks_needed)} {enough}{', judged once' if found.looks else ''}{span}",
    ]
    return "\n".join(lines)


VERB = verb(
    Options,
    power,
    add_arguments,
    prints_only=True,
    summary="show which effect how many blocks can show",
    examples=("power experiments/head_grouping.yaml", "power experiments/head_grouping.yaml --base tiny --effect 0.05"),
)
