"""What a plan would run, cost and be able to see, before anything runs."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis.stats.eligibility import MIN_PAIRS
from analysis.stats.estimate import Noise
from analysis.stats.power import (
    detectable_effect,
    detectable_effect_paired,
    seeds_needed,
    seeds_needed_paired,
    sigma_interval,
)
from analysis.store.schema import difference_unit
from llama_variants.errors import ConfigError, Problem
from runners.execution.sweep import Slots, unfinished
from runners.planning.arms import PlannedArm
from runners.planning.files import MAX_SEEDS
from runners.planning.plan import Plan
from runners.runs.folder import RunFolder
from runners.training.gates import recipe_faults

MIN_DF = 8  # of a measured seed sd; with fewer it is off by more than half in one case of twenty
MODEL_EFFICIENCY = 0.5  # of the probe's matrix-product rate that a training step reaches; coarse, and said to be


def preview(plan: Plan, root: Path, slots: Slots) -> tuple[str, dict[str, Any]]:
    """The plan as a table and as a JSON-able record."""
    control = plan.arms[0]
    rows = [_row(arm, control, root) for arm in plan.arms]
    todo = unfinished(plan, root)
    seconds, basis = _estimate_seconds(plan, todo, root, slots)
    sigma, sigma_source = _sigma(plan, root)
    variants = [arm for arm in plan.arms if arm.role == "variant"]
    effect = None
    if sigma is not None and variants and not plan.screen:
        sizes = [len(arm.runs) for arm in variants]
        effect = max(_detectable(plan, sigma, n, (*sizes[:i], *sizes[i + 1 :])) for i, n in enumerate(sizes))
    faults: dict[str, list[str]] = {}  # what would make runs invalid, and whose
    for arm in plan.arms:
        for fault in recipe_faults(arm.recipe.train):
            faults.setdefault(fault, []).append(arm.name)
    record = {
        "name": plan.name,
        "base": plan.base,
        "question": plan.question,
        "tokens_per_run": control.recipe.train.num_tokens,
        "arms": rows,
        "runs": len(plan.runs()),
        "runs_left": len(todo),
        "workers": len(slots.devices),
        "estimated_seconds": round(seconds),
        "estimate_basis": basis,
        "smallest_detectable_effect": effect,
        "sigma": sigma,
        "sigma_source": sigma_source,
        "margin": plan.decide.margin,
        "screen": plan.screen,
        "faults": faults,
    }
    return _text(plan, record), record


PAIRED = "in pairs whose seeds do not correlate; a correlation r makes it sqrt(1 - r) of that (0.71 at +0.5)"


def _detectable(plan: Plan, sigma: float, n: int, others: tuple[int, ...]) -> float:
    """What ``n`` seeds of a variant show beside ``others`` of its family; in pairs, as ``PAIRED`` says."""
    alpha = plan.decide.alpha
    if plan.paired:
        return detectable_effect_paired(sigma, n, 1 + len(others), correlation=0.0, alpha=alpha)
    return detectable_effect(sigma, len(plan.arms[0].runs), (n, *others), alpha=alpha)


def _row(arm: PlannedArm, control: PlannedArm, root: Path) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "role": arm.role,
        "runs": len(arm.runs),
        "done": sum(RunFolder(root, run.key).status.state == "FINISHED" for run in arm.runs),
        "seeds": [run.seed for run in arm.runs],
        "num_params": arm.recipe.num_params,
        "params_delta": arm.recipe.num_params / control.recipe.num_params - 1,
        "flops_per_token": arm.recipe.flops_per_token,
        "flops_delta": arm.recipe.flops_per_token / control.recipe.flops_per_token - 1,
        "diff": {path: list(pair) for path, pair in arm.diff.items()},
        "solved": list(arm.solved),
        "expect": arm.expect,
    }


def _estimate_seconds(plan: Plan, todo: list[Any], root: Path, slots: Slots) -> tuple[float, str]:
    """Wall time of the runs left, from runs of this plan that are done, else from a matrix product timed now."""
    if not todo:
        return 0.0, "nothing is left to do"
    done = [
        status.ended - status.resumed
        for run in plan.runs()
        if (status := RunFolder(root, run.key).status).state == "FINISHED"
    ]
    workers = min(len(slots.devices), len(todo))
    if done:
        return statistics.median(done) * len(todo) / workers, "finished runs of this plan"
    rate = _matmul_flops_per_s(slots) * MODEL_EFFICIENCY
    flops = sum(run.recipe.train.num_tokens * run.recipe.flops_per_token for run in todo)
    return flops / rate / workers, "a matrix product timed on this machine; within a factor of two or so"


def _matmul_flops_per_s(slots: Slots) -> float:
    import torch

    from runners.runs.machine import matmul_flops

    before = torch.get_num_threads()
    torch.set_num_threads(slots.threads)
    try:
        return matmul_flops(torch.device(slots.devices[0]))
    finally:
        torch.set_num_threads(before)


def _sigma(plan: Plan, root: Path) -> tuple[float | None, str]:
    """Seed sd of the metric: as the base states it, or that of three or more finished control runs where larger."""
    values = _losses(plan, plan.arms[0], root)
    stated = plan.decide.sigma
    if len(values) >= 3 and (stated is None or statistics.stdev(values) > stated):  # a few runs promise nothing better
        return statistics.stdev(values), f"{len(values)} control runs on this machine"
    return stated, plan.decide.sigma_source


def _losses(plan: Plan, arm: PlannedArm, root: Path) -> list[float]:
    folders = [RunFolder(root, run.key) for run in arm.runs]
    return [f.rows()[0][-1]["metrics"][plan.decide.metric] for f in folders if f.status.state == "FINISHED"]


def seeds_and_effects(plan: Plan, root: Path, effect: float | None) -> tuple[str, dict[str, Any]]:
    """Which true effect how many seeds of a variant show, and how many seeds ``effect`` takes (None: the margin).

    By the spread of this plan's finished runs, where they have 8 degrees of freedom; else by what the base states.

    Raises:
        ConfigError: when neither is known.
    """
    samples = {arm.name: np.array(_losses(plan, arm, root)) for arm in plan.arms if arm.role in ("control", "variant")}
    noise = Noise.of({name: values for name, values in samples.items() if len(values) > 1})
    decide = plan.decide
    if noise.df >= MIN_DF:
        sigma, source = noise.sigma, f"measured on finished runs of this plan, {noise.df} degrees of freedom"
        low, high = sigma_interval(sigma, noise.df)
    elif decide.sigma is not None:
        sigma, source = decide.sigma, f"stated by the base: {decide.sigma_source}"
        low, high = decide.sigma_range or (sigma, sigma)
    else:
        allowed = "decide.sigma in the base, or finished runs"
        raise ConfigError([Problem(("base",), f"{plan.base}, whose seed sd is not known", allowed)])
    num_variants = max(1, sum(arm.role == "variant" for arm in plan.arms))
    n_control = len(plan.arms[0].runs)
    wanted = decide.margin if effect is None else effect
    rows = []
    for n in (2, 3, 4, 5, 6, 8, 12, 16):
        if plan.paired and n < MIN_PAIRS:
            continue
        others = (n,) * (num_variants - 1)
        ends = (("effect", sigma), ("effect_low", low), ("effect_high", high))
        rows.append({"seeds": n, **{name: _detectable(plan, s, n, others) for name, s in ends}})
    if plan.paired:
        needed = seeds_needed_paired(wanted, sigma, num_variants, correlation=0.0, alpha=decide.alpha, most=MAX_SEEDS)
        too_many = f"more than {MAX_SEEDS} seeds"
        enough = f"{needed} seeds, of the control too, which has {n_control}"
    else:
        needed = seeds_needed(wanted, sigma, n_control, alpha=decide.alpha, num_variants=num_variants)
        too_many = f"more than {n_control} control seeds"
        enough = f"{needed} seeds of each variant"
    record = {
        **{"name": plan.name, "base": plan.base, "metric": decide.metric, "alpha": decide.alpha, "power": 0.8},
        **{"n_control": n_control, "num_variants": num_variants, "paired": plan.paired},
        **{"sigma": sigma, "sigma_low": low, "sigma_high": high, "sigma_source": source},
        **{"rows": rows, "effect": wanted, "seeds_needed": needed},
    }
    known = low < high
    variants = f"{num_variants} variant{'s' if num_variants > 1 else ''}"
    lines = [
        f"{plan.name} · {plan.base} · {decide.metric} · {n_control} control seeds, {variants}",
        f"seed sd {sigma:.4f}{f', {low:.4f} to {high:.4f}' if known else ''} ({source})",
        "",
        f"seeds of each variant   smallest effect seen 4 times in 5{'   at the ends of that range' if known else ''}",
        *(
            f"{row['seeds']:>21}   {row['effect']:>33.4f}"
            + (f"   {row['effect_low']:.4f} to {row['effect_high']:.4f}" if known else "")
            for row in rows
        ),
        *([f"({PAIRED})"] if plan.paired else []),
        "",
        f"an effect of {wanted:g} {difference_unit(decide.metric)}{' (the margin)' if effect is None else ''} takes "
        f"{enough if needed else too_many}",
    ]
    return "\n".join(lines), record


def _text(plan: Plan, record: dict[str, Any]) -> str:
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("arm", "left"),
        ("runs", "right"),
        ("done", "right"),
        ("parameters", "right"),
        ("", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("MFLOP/token", justify="right")
    table.add_column("", justify="right")
    table.add_column("what differs from the control")
    for row in record["arms"]:
        diff = [
            f"{path.removeprefix('model.')} {_value(old)} → {_value(new)}{' (solved)' if path in row['solved'] else ''}"
            for path, (old, new) in row["diff"].items()
        ]
        what = ", ".join(diff) or ("other seeds" if row["role"] == "check" else "")
        costs = (
            f"{row['num_params']:,}",
            f"{row['params_delta']:+.2%}",
            f"{row['flops_per_token'] / 1e6:,.2f}",
            f"{row['flops_delta']:+.2%}",
        )
        table.add_row(row["arm"], str(row["runs"]), str(row["done"]), *costs, what)
    out = io.StringIO()
    console = Console(file=out, width=200, soft_wrap=True, markup=False)
    tokens = record["tokens_per_run"]
    console.print(f"{plan.name} · {plan.base} · {tokens:,} tokens a run\n{plan.question}\n", highlight=False)
    console.print(table)
    minutes = record["estimated_seconds"] / 60
    left = f"{minutes / 60:,.1f} h" if minutes > 90 else f"{minutes:,.1f} min"
    console.print(
        f"\n{record['runs']} runs, {record['runs_left']} left: about {left} with {record['workers']} at once "
        f"(by {record['estimate_basis']})",
        highlight=False,
    )
    for fault, arms in record["faults"].items():
        console.print(f"warning: runs of {', '.join(arms)} would be invalid: {fault}", highlight=False)
    for line in _power_lines(plan, record):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _power_lines(plan: Plan, record: dict[str, Any]) -> list[str]:
    if plan.screen:
        return ["one seed an arm: this screens, and gives numbers but no verdict"]
    effect, margin = record["smallest_detectable_effect"], record["margin"]
    if not any(arm.role == "variant" for arm in plan.arms):
        return []
    if effect is None:
        return ["smallest detectable effect not known: the base states no seed sd, and no control runs are done"]
    lines = [
        f"smallest effect this design sees 4 times in 5: {effect:.4f} "
        f"(seed sd {record['sigma']:.4f}: {record['sigma_source']}){f', {PAIRED}' if plan.paired else ''}"
    ]
    if effect > margin:
        lines.append(f"warning: that is more than the margin of {margin:g}; small differences will come out undecided")
    return lines


def _value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
