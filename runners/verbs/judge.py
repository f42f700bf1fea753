"""Judge what has run, print it and compare it with what was required: the end of `run`, and the whole of `report`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import REPORTS, OnExperiment

if TYPE_CHECKING:
    from runners.execution.mirrors import Mirrors
    from runners.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Requiring:
    """Verdicts without which the exit code is 1."""

    require: list[str]


def add_require(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Requiring`; ``--gate`` is what it was called."""
    text = "exit with 1 unless the verdict is one of these, e.g. better:mqa or better,equivalent:mqa"
    parser.add_argument("--require", action="append", default=[], metavar="WORDS:VARIANT", help=text)
    parser.add_argument("--gate", action="append", default=argparse.SUPPRESS, dest="require", help=argparse.SUPPRESS)


def print_report(
    plan: Plan,
    mirrors: Mirrors,
    options: OnExperiment,
    required: Mapping[str, set[str]],
    *,
    as_json: bool = False,
    notebooks: bool = False,
    keep: Path | None = None,
) -> bool:
    """Whether the report is whole and every requirement is met."""
    from runners.verdicts import report

    reported = report(plan, mirrors, REPORTS, _same_runs(options), notebooks=notebooks, keep=keep)
    if as_json:
        print(reported.files["table"].read_text())
    else:
        print(f"\n{reported.text}\n")
        for name in ("report", "markdown", "table"):
            print(f"{name + ':':<9} {reported.files[name]}")
        print(f"compare the runs in the MLflow UI: make ui, {reported.page}")
    missed = reported.missed(required)
    for line in [*(f"error: {fault}" for fault in reported.faults), *missed]:
        print(line, file=sys.stderr)
    return not (missed or reported.faults)


def print_probes(plan: Plan, mirrors: Mirrors, metrics: Sequence[str] | None = None) -> None:
    """What was measured later says of the arms: ``metrics``, or all. Raises ConfigError for one that no run has."""
    from analysis.report.probes import probe_text
    from analysis.stats.secondary import probe_metrics, secondary
    from llama_variants.errors import ConfigError, Problem, one_of
    from runners.verdicts import item_values, stored

    for stage in plan.stages:
        design, runs = stored(stage, mirrors)
        known = probe_metrics(runs)
        if not known and stage.confirms:  # not measured yet
            continue
        if unknown := [name for name in metrics or () if name not in known]:
            allowed = one_of(unknown[0], known) if known else "one that `evaluate` has measured; none is there yet"
            raise ConfigError([Problem(path=("--metric",), received=unknown[0], allowed=allowed)])
        table = secondary(runs, design, metrics, item_values(stage, mirrors.root))
        print(f"\n{design.name} on {design.base}\n{probe_text(table, design)}")


def _same_runs(options: OnExperiment) -> str:
    """The command that makes the same runs."""
    given = (("EXP", options.experiment), ("BASE", options.base), ("SEEDS", options.seeds))
    command = shlex.join(["make", "ablation", *(f"{name}={value}" for name, value in given if value)])
    return command.encode(
        errors="backslashreplace"
    ).decode()  # a name that is no UTF-8 would keep the report from a file
