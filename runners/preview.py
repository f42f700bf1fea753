"""What a plan would run, cost and be able to see, before anything runs."""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.power import detectable_effect
from runners.experiment import Plan, PlannedArm
from runners.health import recipe_faults
from runners.store import RunFolder
from runners.sweep import Slots, unfinished

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
    df = sum(len(arm.runs) - 1 for arm in (control, *variants))  # with which the verdicts will estimate sigma
    if sigma is not None and variants and df and not plan.screen:
        effect = max(
            detectable_effect(
                sigma, len(control.runs), len(arm.runs), alpha=plan.decide.alpha, num_variants=len(variants), df=df
            )
            for arm in variants
        )
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

    device = torch.device(slots.devices[0])
    size = 8192 if device.type == "cuda" else 1024  # large enough that starting it costs nothing beside it
    before = torch.get_num_threads()
    torch.set_num_threads(slots.threads)
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * size**3 / min(times)


def _sigma(plan: Plan, root: Path) -> tuple[float | None, str]:
    """Seed sd of the metric: as the base states it, or that of three or more finished control runs where larger."""
    values = []
    for run in plan.arms[0].runs:
        folder = RunFolder(root, run.key)
        if folder.status.state == "FINISHED":
            values.append(folder.rows()[0][-1]["metrics"][plan.decide.metric])
    stated = plan.decide.sigma
    if len(values) >= 3 and (stated is None or statistics.stdev(values) > stated):  # a few runs promise nothing better
        return statistics.stdev(values), f"{len(values)} control runs on this machine"
    return stated, plan.decide.sigma_source


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
    if effect is None:
        return ["smallest detectable effect not known: the base states no seed sd, and no control runs are done"]
    lines = [
        f"smallest effect this design sees 4 times in 5: {effect:.4f} "
        f"(seed sd {record['sigma']:.4f}: {record['sigma_source']})"
    ]
    if effect > margin:
        lines.append(f"warning: that is more than the margin of {margin:g}; small differences will come out undecided")
    return lines


def _value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
