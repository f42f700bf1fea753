"""`calibrate`: how blocks scatter on a base, the prior that follows, and how often verdicts are right."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.verbs.common import (
    REPORTS,
    RUNS,
    Context,
    OnExperiment,
    add_experiment,
    add_json,
    positive,
    read_plan,
    verb,
)
from runners.verbs.effects import kind_of

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from analysis.store.schema import Prior
    from runners.planning.plan import Plan

Record = Mapping[str, Any]  # numbers and names that `analysis.stats.simulation` gives
LEAST = 5  # blocks: fewer say little of how differences scatter
TRIALS = 2000


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which experiment's runs, and how much to simulate."""

    trials: int
    losses: Path | None
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("--trials", type=positive, default=TRIALS, help=f"simulated experiments a case ({TRIALS:,})")
    parser.add_argument("--losses", type=Path, metavar="CSV", help="a table of finished runs (arm, seed, loss)")
    add_json(parser)


def calibrate(options: Options, context: Context) -> int:
    """Print the calibration, and keep it."""
    plan = read_plan(options)
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False, highlight=False, stderr=options.as_json)
    record = calibration(plan, RUNS, REPORTS, options.trials, console, options.losses)
    if options.as_json:
        print(json.dumps(record, indent=1))
    return 0


def calibration(
    plan: Plan, root: Path, folder: Path, trials: int, console: Console, losses: Path | None = None
) -> Record:
    """Print how this plan's blocks scatter and how right the verdicts are with that noise; write calibration.json.

    ``losses`` is a table of finished runs to take in place of the plan's own: arm, seed and the metric.

    Raises:
        ConfigError: when fewer than ``LEAST`` blocks of three arms are complete, or ``losses`` is no such table.
    """
    from analysis.stats import simulation
    from llama_variants.errors import ConfigError, Problem
    from runners.data.atomic import write_atomically

    metric, twins = plan.decide.metric, [arm.name for arm in plan.arms if arm.role == "check" and arm.expect == "same"]
    runs = _stored(metric, losses) if losses else _finished(plan, root)
    known = {arm.name for arm in plan.arms if arm.role != "budget"}
    runs = runs[runs["arm"].isin(known)]
    found = simulation.scatter(runs, metric) if "control" in set(runs["arm"]) else {}
    others = {arm: one for arm, one in found.items() if arm not in twins}
    blocks = min((int(one["n"]) for one in found.values()), default=0)
    if blocks < LEAST or len(others) < 3:
        allowed = f"{LEAST} blocks of three arms; train them by: make ablation EXP=experiments/calibration.yaml"
        received = f"{plan.name} on {plan.base} with {blocks} complete blocks of {len(others)} arms"
        raise ConfigError([Problem(path=("experiment",), received=received, allowed=allowed)])
    prior = simulation.prior_of(others, f"{len(others)} arms in {blocks} blocks of {plan.name} on {plan.base}")
    kinds = _kinds(plan, others)
    console.print(f"{plan.name} on {plan.base}: {metric}, {blocks} blocks")
    console.print(_scatter_table(found))
    console.print(f"\nfor decide: in the base's YAML\n{_prior_yaml(prior, others, kinds)}")
    rates = []
    differences = simulation.within_blocks_of(runs, metric).drop(columns=twins)
    for title, records in (
        ("honest experiments", simulation.simulation(simulation.honest_cases(), trials)),
        ("an assumption broken on purpose", simulation.simulation(simulation.broken_cases(), trials)),
        (f"noise of these runs ({len(others)} arms)", simulation.resampled(differences, trials)),
    ):
        console.print(f"\n{title}, {trials:,} of each; per cent of experiments\n{_HEAD}")
        for record in records:
            rates.append(record)
            console.print(_rates_line(record))
    programmes = simulation.streams(trials=max(1, trials // 10))
    console.print(
        "\n100 experiments without an effect on the same control runs; per cent of such programmes in which any arm "
        f"was called: {100 * programmes['alone']:.1f} by each experiment's own p, {100 * programmes['programme']:.1f} "
        f"by the programme's, {100 * programmes['fresh']:.1f} by their own on fresh control runs"
    )
    record = {
        "experiment": plan.design().experiment,
        "blocks": blocks,
        "scatter": found,
        "kinds": kinds,
        "prior": asdict(prior),
        "rates": rates,
        "programmes": programmes,
    }
    file = folder / record["experiment"] / "calibration.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1))
    console.print(f"\nwritten: {file}")
    return record


def _kinds(plan: Plan, found: Mapping[str, Record]) -> dict[str, float]:
    """Root mean square of the arms' sd by what kind of thing they change, of those that change one kind."""
    squares: dict[str, list[float]] = {}
    for arm in plan.arms:
        kinds = {kind_of(path) for path in arm.diff}
        if arm.name in found and len(kinds) == 1:
            squares.setdefault(kinds.pop(), []).append(found[arm.name]["sd"] ** 2)
    return {kind: math.sqrt(sum(each) / len(each)) for kind, each in sorted(squares.items())}


def _stored(metric: str, file: Path) -> pd.DataFrame:
    import pandas as pd

    from llama_variants.errors import ConfigError, Problem

    try:
        runs = pd.read_csv(file)
    except (OSError, ValueError) as error:
        problem = Problem(path=("--losses",), received=str(file), allowed=f"a readable CSV file ({error})")
        raise ConfigError([problem]) from None
    if missing := {"arm", "seed", metric} - set(runs):
        problem = Problem(
            path=("--losses",), received=str(file), allowed=f"a table with columns {', '.join(sorted(missing))}"
        )
        raise ConfigError([problem])
    return runs


def _finished(plan: Plan, root: Path) -> pd.DataFrame:
    from analysis.store import load
    from runners.execution.mirrors import Mirrors

    mirrors = Mirrors(root)

    def stored() -> pd.DataFrame:
        mirror = mirrors.of(plan)
        for run in plan.runs():
            mirror.sync(run)
        return load.load_runs(load.load_design(plan.design().experiment, mirrors.uri), mirrors.uri)

    runs = mirrors.ask(stored)
    return runs[(runs["status"] == "FINISHED") & runs["invalid"].isna()]


def _scatter_table(found: Mapping[str, Record]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    heads = ("arm", "delta", "sd within a block", "sd unpaired", "ratio", "seed correlation", "normal, p")
    for name in heads:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, one in found.items():
        numbers = f"{one['delta']:+.4f}", f"{one['sd']:.4f}", f"{one['unpaired']:.4f}"
        ratio = f"{one['sd'] / one['unpaired']:.2f}", f"{one['correlation']:+.2f}", f"{one['shapiro_p']:.2f}"
        table.add_row(arm, *numbers, *ratio)
    return table


def _prior_yaml(prior: Prior, found: Mapping[str, Record], kinds: Mapping[str, float]) -> str:
    sds = [one["sd"] for one in found.values()]
    listed = ", ".join(f"{kind}: {sd:.4f}" for kind, sd in kinds.items())
    return (
        f"  difference: {{sd: {prior.sd:.4f}, df: {prior.df:.1f}, low: {min(sds):.4f}, high: {max(sds):.4f},\n"
        f'    kinds: {{{listed}}},\n    source: "{prior.source}"}}'
    )


_HEAD = f"{'case':<44}{'arms x blocks':<16}{'false alarms':>14}{'coverage (95)':>15}{'power (80)':>12}"


def _rates_line(record: Record) -> str:
    cells = [f"{100 * record[name]:.1f}" for name in ("alarms", "coverage", "power")]
    return f"{record['case']:<44}{record['design']:<16}{cells[0]:>14}{cells[1]:>15}{cells[2]:>12}"


VERB = verb(
    Options,
    calibrate,
    add_arguments,
    summary="show how blocks scatter, the prior that follows, and how often verdicts are right",
    examples=(
        "calibrate experiments/calibration.yaml",
        "calibrate experiments/calibration.yaml --trials 20000 --losses experiments/results/calibration-tiny.csv",
    ),
)
