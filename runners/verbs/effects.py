"""What blocks can show: the spread that `plan` and `power` both look up, and the effect that it lets them see."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.stats.power import Layout
    from runners.planning.arms import PlannedArm
    from runners.planning.plan import Plan

MIN_DF = 2  # of a measured sd


@dataclass(frozen=True, kw_only=True)
class Known:
    """The sd of a difference within a block (of a run, where seeds are independent), in the metric's unit."""

    sd: float  # that is typical
    low: float
    high: float
    df: float  # as much as is known of it; 0 where that is not stated
    source: str
    by_arm: Mapping[str, float] = field(default_factory=dict)  # of variants of a kind that is known apart

    def of(self, arm: PlannedArm) -> float:
        """That of one variant."""
        return self.by_arm.get(arm.name, self.sd)


def spread(plan: Plan, root: Path) -> Known | None:
    """What is known of the sd behind the plan's verdicts; None where nothing is.

    That is what the base states, or what finished runs of this plan's variants show where they have more degrees of
    freedom than that; where there is neither, what those of the control's twin show.
    """
    variants = [arm for arm in plan.arms if arm.role == "variant"]
    twins = [arm for arm in plan.arms if arm.role == "check" and arm.expect == "same"]
    stated, measured = _stated(plan, variants), _measured(plan, variants, root)
    if measured and (stated is None or measured.df > stated.df):
        return measured
    return stated or _measured(plan, twins, root)


def unknown(plan: Plan) -> str:
    """The sentence for a plan whose spread is not known."""
    if plan.independent:
        what, name = "of runs between seeds", "seed"
    else:
        what, name = "of differences within blocks", "difference"
    return (
        f"the sd {what} on {plan.base} is not known: the base states no decide.{name}, and fewer than three "
        f"{unit(plan)}s of this plan are done"
    )


def smallest_effect(plan: Plan, sd: float, n: int) -> float | None:
    """The smallest true difference that ``n`` blocks of a variant show 4 times in 5; None where they show none.

    Args:
        plan: whose looks, alpha, prior and number of variants count; and whose control's runs, where seeds are
            independent.
        sd: as :class:`Known` has it; the result has its unit.
        n: blocks of the variant, or its runs.
    """
    from analysis.stats.power import detectable_effect

    try:
        return detectable_effect(sd, layout(plan, n))
    except ValueError:  # too few to tell anything
        return None


def layout(plan: Plan, n: int) -> Layout:
    """What the plan declares that bears on what ``n`` blocks show; its looks as far as they go, and one after all."""
    from analysis.stats.power import Layout

    return Layout(
        blocks=(plan.blocks, n) if plan.independent else n,
        family=max(1, sum(arm.role == "variant" for arm in plan.arms)),
        alpha=plan.decide.alpha,
        looks=(*(look for look in plan.looks if look < n), n) if plan.looks else (),
        prior=plan.prior,
    )


def unit(plan: Plan) -> str:
    """What is counted."""
    return "seed" if plan.independent else "block"


def _stated(plan: Plan, variants: Iterable[PlannedArm]) -> Known | None:
    stated = plan.decide.seed if plan.independent else plan.decide.difference
    if stated is None:
        return None
    by_arm = {}
    for arm in variants:
        kinds = {kind_of(path) for path in arm.diff}
        if len(kinds) == 1 and (kind := kinds.pop()) in stated.kinds:
            by_arm[arm.name] = stated.kinds[kind]
    source = f"stated by the base: {stated.source}"
    return Known(sd=stated.sd, low=stated.low, high=stated.high, df=stated.df or 0.0, source=source, by_arm=by_arm)


def kind_of(path: str) -> str:
    """What a path of a recipe is of: attention, mlp or lr, say; of every layer or of some."""
    names = path.split(".")
    return names[3] if names[1] == "layers" else names[1]


def _measured(plan: Plan, arms: Sequence[PlannedArm], root: Path) -> Known | None:
    """The sd over finished blocks, pooled over the arms (and the control, where each has seeds of its own)."""
    control = _losses(plan, plan.arms[0], root)
    samples = {arm.name: _losses(plan, arm, root) for arm in arms}
    if plan.independent:
        values = {plan.arms[0].name: list(control.values())}
        values |= {name: list(losses.values()) for name, losses in samples.items()}
    else:
        values = {
            name: [loss - control[seed] for seed, loss in losses.items() if seed in control]
            for name, losses in samples.items()
        }
    variances = {name: v for name, sample in values.items() if len(sample) > 1 and (v := statistics.variance(sample))}
    df = sum(len(values[name]) - 1 for name in variances)
    if df < MIN_DF:
        return None
    sds = [variance**0.5 for variance in variances.values()]
    blocks = f"{max(len(values[name]) for name in variances)} {unit(plan)}s"
    return Known(
        sd=statistics.fmean(variances.values()) ** 0.5,
        low=min(sds),
        high=max(sds),
        df=df,
        source=f"measured on finished runs of this plan: {', '.join(variances)}; {blocks}, {df} degrees of freedom",
    )


def _losses(plan: Plan, arm: PlannedArm, root: Path) -> dict[int, float]:
    """Seed -> the metric of the arm's finished run."""
    from runners.runs.folder import RunFolder

    folders = {run.seed: RunFolder(root, run.key) for run in arm.runs}
    metric = plan.decide.metric
    return {seed: f.final_metrics()[metric] for seed, f in folders.items() if f.status.state == "FINISHED"}
