"""`report`: judge what has run, and write the report."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from runners.verbs.common import RUNS, Context, OnExperiment, add_experiment, add_json, read_plan, verb
from runners.verbs.judge import Requiring, add_require, print_probes, print_report


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment, Requiring):
    """Which experiment, and what to make of it besides the report."""

    as_json: bool
    notebooks: bool
    keep: Path | None
    metrics: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    add_json(parser, "print the table as JSON")
    parser.add_argument("--notebooks", action="store_true", help="also run the notebooks and export them as HTML")
    text = "judge what `evaluate` measured instead, e.g. probe/own/induction_loss; several are one family"
    parser.add_argument("--metric", action="append", default=[], dest="metrics", metavar="KEY", help=text)
    add_require(parser)
    text = "also keep declaration and runs, from MLflow, as a file in this folder (for `results`)"
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help=text)


def report(options: Options, context: Context) -> int:
    """Judge what has run. Raises ConfigError where nothing has."""
    plan = read_plan(options)
    from llama_variants.errors import ConfigError, Problem
    from runners.execution.mirrors import Mirrors
    from runners.runs.folder import RunFolder
    from runners.verdicts import read_requirements

    required, mirrors = read_requirements(options.require, plan), Mirrors(RUNS)
    if all(RunFolder(RUNS, run.key).status.state == "NEW" for run in plan.runs()):
        command = shlex.join(["python", "-m", "runners", "run", str(options.experiment)])
        allowed = f"an experiment with runs; start it by: {command}"
        problem = Problem(
            path=(),
            received=f"nothing to report: no run of {plan.name} on {plan.base} in {RUNS.absolute()}",
            allowed=allowed,
        )
        raise ConfigError([problem])

    if options.metrics:
        print_probes(plan, mirrors, options.metrics)
        return 0
    shown = {"as_json": options.as_json, "notebooks": options.notebooks}
    return 0 if print_report(plan, mirrors, options, required, keep=options.keep, **shown) else 1


VERB = verb(
    Options,
    report,
    add_arguments,
    summary="print the verdicts of what has run and write the report",
    examples=(
        "report experiments/demo.yaml",
        "report experiments/rotary_theta.yaml --base tiny --metric probe/own/loss_past_window/4x",
        "report experiments/head_grouping.yaml --base tiny --keep experiments/results",
    ),
)
