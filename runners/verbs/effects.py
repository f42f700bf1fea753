"""What seeds can show, of which `plan` gives the least and `power` a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.planning.arms import PlannedArm
    from runners.planning.plan import Plan

PAIRED = "in pairs whose seeds do not correlate; a correlation r makes it sqrt(1 - r) of that (0.71 at +0.5)"


def detectable(plan: Plan, sigma: float, n: int, others: Sequence[int]) -> float:
    """The smallest true difference that ``n`` seeds of a variant show 4 times in 5, in the metric's unit.

    Args:
        plan: whose control and alpha count; in pairs, as ``PAIRED`` says.
        sigma: seed standard deviation of the metric.
        n: runs of the variant.
        others: runs of each other arm of its family.
    """
    from analysis.stats.power import detectable_effect, detectable_effect_paired

    alpha = plan.decide.alpha
    if plan.paired:
        return detectable_effect_paired(sigma, n, 1 + len(others), correlation=0.0, alpha=alpha)
    return detectable_effect(sigma, len(plan.arms[0].runs), (n, *others), alpha=alpha)


def losses(plan: Plan, arm: PlannedArm, root: Path) -> list[float]:
    """The metric of the arm's finished runs, in the order of their seeds."""
    from runners.runs.folder import RunFolder

    folders = [RunFolder(root, run.key) for run in arm.runs]
    return [f.final_metrics()[plan.decide.metric] for f in folders if f.status.state == "FINISHED"]
