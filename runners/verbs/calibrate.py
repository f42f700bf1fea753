"""`calibrate`: how often verdicts are right, simulated, and on an experiment's finished runs dealt into small ones."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from analysis.store.schema import Design
    from runners.planning.plan import Plan

Record = Mapping[str, Any]  # numbers and names that `analysis.stats.simulation` gives
DEALT = (5, 3)  # runs of the control and of the other arm in each small experiment
LEAST = 20  # control runs: fewer say little of the noise's shape


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which experiment's runs, and how much to simulate."""

    trials: int
    losses: Path | None
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("--trials", type=positive, default=2000, help="simulated experiments a case")
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
    """Print the calibration of the verdicts on this plan's finished runs, and write it to calibration.json.

    The noise that is resampled is that of the plan's control runs and of checks that repeat the control. ``losses`` is
    a table of finished runs to take in place of the plan's own: arm, seed and the metric.

    Raises:
        ConfigError: when fewer than ``LEAST`` control runs are done, or ``losses`` is no such table.
    """
    import numpy as np

    from analysis.stats.simulation import broken_cases, deal, honest_cases, shape, simulation
    from llama_variants.errors import ConfigError, Problem
    from runners.data.atomic import write_atomically

    design, good = _stored(plan, losses) if losses else _finished(plan, root)
    by_arm = {name: group[design.metric].to_numpy(float) for name, group in good.groupby("arm", sort=False)}
    same = [arm.name for arm in design.compared if arm.role == "control" or (arm.role == "check" and not arm.diff)]
    control = by_arm.get(design.control.name, np.array([]))
    if len(control) < LEAST:
        allowed = f"{LEAST} finished control runs; make them by: make ablation EXP=experiments/calibration.yaml"
        problem = Problem(
            path=("experiment",), received=f"{plan.name} on {plan.base} with {len(control)}", allowed=allowed
        )
        raise ConfigError([problem])
    groups = [by_arm[name] for name in same if len(by_arm.get(name, ())) > 1]
    noise = shape(groups)
    dealt = [
        {"arm": arm.name, "delta": float(by_arm[arm.name].mean() - control.mean())}
        | deal(control, by_arm[arm.name], *DEALT)
        for arm in design.compared[1:]
        if len(by_arm.get(arm.name, ())) >= DEALT[1]
    ]
    console.print(f"{design.name} on {design.base}: {design.metric}")
    console.print(_noise_text(noise))
    console.print(_dealt_table(dealt))
    residuals = np.concatenate([x - x.mean() for x in groups])
    rates = []
    for title, cases in (("honest experiments", honest_cases()), ("an assumption broken on purpose", broken_cases())):
        for drawn in (None, residuals):
            of = "normal noise" if drawn is None else f"noise drawn from {len(residuals)} real residuals"
            console.print(f"\n{title}, {of}, {trials:,} of each; per cent of experiments")
            console.print(_HEAD)
            for record in simulation(cases, drawn, trials):
                rates.append(record)
                console.print(_rates_line(record))
    record = {"experiment": design.experiment, "noise": noise, "dealt": dealt, "rates": rates}
    file = folder / design.experiment / "calibration.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1, default=_plain))
    console.print(f"\nwritten: {file}")
    return record


def _stored(plan: Plan, file: Path) -> tuple[Design, pd.DataFrame]:
    import pandas as pd

    from llama_variants.errors import ConfigError, Problem

    design = plan.design()
    try:
        runs = pd.read_csv(file)
    except (OSError, ValueError) as error:
        problem = Problem(path=("--losses",), received=str(file), allowed=f"a readable CSV file ({error})")
        raise ConfigError([problem]) from None
    if missing := {"arm", "seed", design.metric} - set(runs):
        problem = Problem(
            path=("--losses",), received=str(file), allowed=f"a table with columns {', '.join(sorted(missing))}"
        )
        raise ConfigError([problem])
    return design, runs.sort_values("seed")


def _finished(plan: Plan, root: Path) -> tuple[Design, pd.DataFrame]:
    from analysis.store import load
    from runners.execution.mirrors import Mirrors

    mirrors = Mirrors(root)

    def stored() -> tuple[Design, pd.DataFrame]:
        mirror = mirrors.of(plan)
        for run in plan.runs():
            mirror.sync(run)
        design = load.load_design(plan.design().experiment, mirrors.uri)
        return design, load.load_runs(design, mirrors.uri)

    design, runs = mirrors.ask(stored)
    return design, runs[(runs["status"] == "FINISHED") & runs["invalid"].isna()].sort_values("seed")


def _plain(value: object) -> object:
    """A number of numpy's as one of Python's."""
    return value.item() if hasattr(value, "item") else str(value)


def _noise_text(noise: Mapping[str, float]) -> str:
    return (
        f"noise between seeds: sd {noise['sigma']:.4f} [{noise['sigma_low']:.4f}, {noise['sigma_high']:.4f}] on "
        f"{noise['df']:.0f} degrees of freedom, skewness {noise['skewness']:+.2f} ± {noise['skewness_se']:.2f}, excess "
        f"kurtosis {noise['kurtosis']:+.2f} ± {noise['kurtosis_se']:.2f}, normal by Shapiro and Wilk p "
        f"{noise['shapiro_p']:.2f}\n"
    )


def _dealt_table(dealt: Sequence[Record]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"real runs dealt into experiments of {DEALT[0]} + {DEALT[1]}")
    for name in ("arm", "delta", "experiments", "called", "% [95 % interval]", "% predicted"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in dealt:
        share = f"{100 * row['called'] / row['experiments']:.0f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        numbers = f"{row['delta']:+.4f}", str(row["experiments"]), str(row["called"]), share
        table.add_row(row["arm"], *numbers, f"{100 * row['predicted']:.0f}")
    return table


_HEAD = f"{'case':<54}{'runs':<18}{'alarms':>7}{'pooling alone':>15}{'coverage':>10}{'power (80)':>12}"


def _rates_line(record: Record) -> str:
    cells = [f"{100 * record[name]:.1f}" for name in ("alarms", "naive_alarms", "coverage", "power")]
    cells = ["–" if cell == "nan" else cell for cell in cells]
    honest = math.isclose(record["alarms"], 0) and cells[2] == "–"
    told = "  all undecided or invalid" if honest else ""
    return f"{record['case']:<54}{record['design']:<18}{cells[0]:>7}{cells[1]:>15}{cells[2]:>10}{cells[3]:>12}{told}"


VERB = verb(
    Options,
    calibrate,
    add_arguments,
    summary="show how often verdicts are right: simulated, and on finished runs",
    examples=(
        "calibrate experiments/calibration.yaml",
        "calibrate experiments/calibration.yaml --trials 60000 --losses experiments/results/calibration-tiny.csv",
    ),
)
