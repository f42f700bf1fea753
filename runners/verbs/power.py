"""`power`: which effect how many seeds of a variant can show, given the noise."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import RUNS, Context, OnExperiment, add_experiment, add_json, nats, read_plan, verb
from runners.verbs.effects import PAIRED, detectable, losses

if TYPE_CHECKING:
    from runners.planning.plan import Plan

MIN_DF = 8  # of a measured seed sd; with fewer it is off by more than half in one case of twenty


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which experiment, and which effect is asked about."""

    effect: float | None  # nats; the margin where none is given
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("--effect", type=nats, metavar="NATS", help="how many seeds it takes (default: the margin)")
    add_json(parser)


def power(options: Options, context: Context) -> int:
    """Print the table."""
    found = seeds_and_effects(read_plan(options), RUNS, options.effect)
    print(json.dumps(asdict(found), indent=1) if options.as_json else effects_text(found, options.effect is None))
    return 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a number of seeds shows: at the seed sd that is taken, and at the ends of where it may lie."""

    seeds: int
    effect: float
    effect_low: float
    effect_high: float


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Effects in the metric's unit by number of seeds, and the number that one effect takes."""

    name: str
    base: str
    metric: str
    alpha: float
    power: float
    n_control: int
    num_variants: int
    paired: bool
    sigma: float
    sigma_low: float
    sigma_high: float
    sigma_source: str
    rows: tuple[Row, ...]
    effect: float  # that is asked about
    seeds_needed: int | None  # None where no number of seeds will do


def seeds_and_effects(plan: Plan, root: Path, effect: float | None) -> Effects:
    """Which true effect how many seeds of a variant show, and how many seeds ``effect`` takes (None: the margin).

    By the spread of this plan's finished runs, where they have 8 degrees of freedom; else by what the base states.

    Raises:
        ConfigError: when neither is known.
    """
    from analysis.stats.power import seeds_needed, seeds_needed_paired
    from runners.planning.files import MAX_SEEDS

    decide = plan.decide
    sigma, low, high, source = _noise(plan, root)
    num_variants = max(1, sum(arm.role == "variant" for arm in plan.arms))
    n_control = len(plan.arms[0].runs)
    wanted = decide.margin if effect is None else effect
    if plan.paired:
        needed = seeds_needed_paired(wanted, sigma, num_variants, correlation=0.0, alpha=decide.alpha, most=MAX_SEEDS)
    else:
        needed = seeds_needed(wanted, sigma, n_control, alpha=decide.alpha, num_variants=num_variants)
    return Effects(
        name=plan.name,
        base=plan.base,
        metric=decide.metric,
        alpha=decide.alpha,
        power=0.8,
        n_control=n_control,
        num_variants=num_variants,
        paired=plan.paired,
        sigma=sigma,
        sigma_low=low,
        sigma_high=high,
        sigma_source=source,
        rows=tuple(_row(plan, n, (n,) * (num_variants - 1), (sigma, low, high)) for n in _numbers_of_seeds(plan)),
        effect=wanted,
        seeds_needed=needed,
    )


def _numbers_of_seeds(plan: Plan) -> list[int]:
    numbers = [2, 3, 4, 5, 6, 8, 12, 16]
    if not plan.paired:
        return numbers
    from analysis.stats.eligibility import MIN_PAIRS

    return [n for n in numbers if n >= MIN_PAIRS]


def _row(plan: Plan, n: int, others: tuple[int, ...], sigmas: tuple[float, float, float]) -> Row:
    effect, low, high = (detectable(plan, sigma, n, others) for sigma in sigmas)
    return Row(seeds=n, effect=effect, effect_low=low, effect_high=high)


def _noise(plan: Plan, root: Path) -> tuple[float, float, float, str]:
    """The seed sd, where it may lie, and how that is known."""
    import numpy as np

    from analysis.stats.estimate import Noise
    from analysis.stats.power import sigma_interval
    from llama_variants.errors import ConfigError, Problem

    samples = {arm.name: np.array(losses(plan, arm, root)) for arm in plan.arms if arm.role in ("control", "variant")}
    noise = Noise.of({name: values for name, values in samples.items() if len(values) > 1})
    decide = plan.decide
    if noise.df >= MIN_DF:
        source = f"measured on finished runs of this plan, {noise.df} degrees of freedom"
        return noise.sigma, *sigma_interval(noise.sigma, noise.df), source
    if decide.sigma is not None:
        low, high = decide.sigma_range or (decide.sigma, decide.sigma)
        return decide.sigma, low, high, f"stated by the base: {decide.sigma_source}"
    allowed = "decide.sigma in the base, or finished runs"
    raise ConfigError([Problem(path=("base",), received=f"{plan.base}, whose seed sd is not known", allowed=allowed)])


def effects_text(found: Effects, by_margin: bool) -> str:
    """The table for a terminal; ``by_margin``: the effect that is asked about is the margin."""
    from analysis.store.schema import difference_unit
    from runners.planning.files import MAX_SEEDS

    needed, n_control = found.seeds_needed, found.n_control
    if found.paired:
        too_many = f"more than {MAX_SEEDS} seeds"
        enough = f"{needed} seeds, of the control too, which has {n_control}"
    else:
        too_many = f"more than {n_control} control seeds"
        enough = f"{needed} seeds of each variant"
    known = found.sigma_low < found.sigma_high
    variants = f"{found.num_variants} variant{'s' if found.num_variants > 1 else ''}"
    ends = f", {found.sigma_low:.4f} to {found.sigma_high:.4f}" if known else ""
    lines = [
        f"{found.name} · {found.base} · {found.metric} · {n_control} control seeds, {variants}",
        f"seed sd {found.sigma:.4f}{ends} ({found.sigma_source})",
        "",
        f"seeds of each variant   smallest effect seen 4 times in 5{'   at the ends of that range' if known else ''}",
        *(
            f"{row.seeds:>21}   {row.effect:>33.4f}"
            + (f"   {row.effect_low:.4f} to {row.effect_high:.4f}" if known else "")
            for row in found.rows
        ),
        *([f"({PAIRED})"] if found.paired else []),
        "",
        f"an effect of {found.effect:g} {difference_unit(found.metric)}{' (the margin)' if by_margin else ''} takes "
        f"{enough if needed else too_many}",
    ]
    return "\n".join(lines)


VERB = verb(
    Options,
    power,
    add_arguments,
    prints_only=True,
    summary="show which effect how many seeds of a variant can show",
    examples=("power experiments/head_grouping.yaml", "power experiments/head_grouping.yaml --base tiny --effect 0.05"),
)
