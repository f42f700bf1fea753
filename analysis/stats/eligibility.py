"""The runs of an arm that count, and what bars an arm from being compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from analysis.store.schema import Arm, Design
from analysis.store.stratum import Stratum, facets

if TYPE_CHECKING:
    import pandas as pd  # which a machine that only trains does without

MIN_PAIRS = 5  # below, pairing costs more in degrees of freedom than it can save
RESOLUTION = float(np.finfo(np.float32).eps)
"""Losses are computed in float32: two that are nearer to each other than this share of their size are the same loss."""
APART = timedelta(hours=12)  # farther from each other, two runs were not made side by side
Times = tuple[datetime, datetime]  # when a run began, and ended


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The runs of one arm: those that count, in the order of their seeds, and why others do not."""

    arm: Arm
    seeds: list[int]
    values: np.ndarray
    speeds: np.ndarray  # tokens/s
    memory: np.ndarray  # bytes
    compiled: set[bool]  # whether they were, one or both
    strata: list[Stratum]
    data: list[str]
    times: list[Times]
    reproducible: bool
    eval_se: float
    invalid: Mapping[int, str]  # seed -> why
    missing: Mapping[int, str]  # seed -> what became of a run that was begun and is not done
    again: list[int]  # seeds of which more than one attempt finished

    @classmethod
    def of(cls, arm: Arm, runs: pd.DataFrame, metric: str) -> Sample:
        """The arm's runs out of the frame of :func:`analysis.store.load.load_runs`."""
        import pandas as pd

        mine = runs[runs["arm"] == arm.name].sort_values(["seed", "run_key"])
        invalid, missing, counted = {}, {}, []
        columns = (mine[name] for name in ("seed", "status", "invalid", "reason", metric))
        for place, (seed, status, fault, reason, loss) in enumerate(zip(*columns, strict=True)):
            if pd.notna(fault):
                invalid[seed] = str(fault)
            elif status == "FINISHED" and not math.isfinite(loss):
                invalid[seed] = f"{metric} is not a finite number"
            elif status == "FINISHED":
                counted.append(place)
            else:
                missing[seed] = f"{status}{f' ({reason})' if pd.notna(reason) else ''}"
        good = mine.iloc[counted]
        return cls(
            arm=arm,
            seeds=good["seed"].tolist(),
            values=good[metric].to_numpy(float),
            speeds=good["final/tokens_per_s"].to_numpy(float),
            memory=good["final/peak_memory_bytes"].to_numpy(float),
            compiled=set(good["final/compiled"] == 1),
            strata=[Stratum.parse(text) for text in good["stratum"]],
            data=good["data"].tolist(),
            times=list(zip(good["started"], good["ended"], strict=True)),
            reproducible=bool(good["reproducible"].all()),
            eval_se=_evaluation_error(good, metric),
            invalid=invalid,
            missing=missing,
            again=good.loc[good["finished"] > 1, "seed"].tolist(),
        )

    def partners(self, control: Sample) -> np.ndarray:
        """The control's values, run by run with the same seeds as here."""
        by_seed = dict(zip(control.seeds, control.values, strict=True))
        return np.array([by_seed[seed] for seed in self.seeds])

    def beside(self, control: Sample) -> bool:
        """Whether the two were made side by side, so that their speeds met the same load.

        A card is a run's own. A processor is shared with whatever else goes on, so that runs of another hour, such as
        those of a control that an earlier experiment made, tell nothing about speed.
        """
        if not any(stratum.on_cpu for stratum in (*self.strata, *control.strata)):
            return True
        (began, ended), (other_began, other_ended) = (
            (min(start for start, _ in s.times), max(end for _, end in s.times)) for s in (self, control)
        )
        return bool(began <= other_ended and other_began <= ended)

    @property
    def n(self) -> int:
        """Runs that count."""
        return len(self.values)

    @property
    def declared(self) -> int:
        """Runs that were declared."""
        return len(self.arm.run_keys)


def bar(control: Sample, sample: Sample, design: Design) -> tuple[str, str, float] | None:
    """Verdict, reason and bare difference of an arm that cannot be compared; None for one that can."""
    both = [control] if sample is control else [control, sample]
    if faults := _faults(both):
        return "invalid", "; ".join(faults), math.nan
    delta = float(sample.values.mean() - control.values.mean()) if control.n and sample.n else math.nan
    if short := [_shortfall(s, "of the control " if s is not sample else "") for s in both if s.n < s.declared]:
        return "undecided", "; ".join(short), delta
    if sample is control:
        return None
    if design.screen or control.n == sample.n == 1:
        return "screen", "one seed each: a number, not a verdict", delta
    if reason := _not_independent(control, sample, design):
        return "undecided", reason, delta
    if design.paired and sample.arm.role == "variant" and _one(sample.values - sample.partners(control), sample.values):
        return "invalid", f"differs from the control by {delta:.3g} with every seed: the change did nothing", delta
    return None


def _one(values: np.ndarray, losses: np.ndarray) -> bool:
    """Whether ``values``, made of ``losses``, are one and the same as far as these were computed."""
    return bool(np.ptp(values) <= RESOLUTION * np.abs(losses).max())


def _shortfall(sample: Sample, whose: str) -> str:
    """Which runs there are, and what became of the others."""
    told = [f"seed {seed} {state}" for seed, state in sample.missing.items()]
    return f"{sample.n} of {sample.declared} runs {whose}finished" + (f": {', '.join(told)}" if told else "")


def _evaluation_error(runs: pd.DataFrame, metric: str) -> float:
    """Mean standard error over validation windows: it is logged in nats, and a metric in another unit has its share."""
    error, loss = runs.get("final/val_loss_se"), runs.get("final/val_loss")
    if not metric.startswith("final/val") or error is None or loss is None or runs.empty:
        return math.nan
    return float((error * runs[metric] / loss).mean())


def _faults(samples: Sequence[Sample]) -> list[str]:
    """Why the runs of these arms mean nothing beside each other."""
    faults = [f"{s.arm.name} seed {seed}: {fault}" for s in samples for seed, fault in s.invalid.items()]
    faults += [f"{s.arm.name}: all seeds gave the same loss" for s in samples if s.n > 1 and _one(s.values, s.values)]
    faults += _strata(samples)
    return faults + _mixed("runs on different data", samples, [s.data for s in samples])


def _not_independent(control: Sample, sample: Sample, design: Design) -> str:
    """What would bias the difference, or make its error another than the one that is computed; "" if nothing."""
    if design.paired and sample.arm.role == "variant":
        if unmatched := sorted(set(sample.seeds) - set(control.seeds)):
            return f"paired, but the control has no run with {seed_list(unmatched)}"
        if sample.n < MIN_PAIRS:
            return f"paired analysis needs {MIN_PAIRS} shared seeds, here {sample.n}"
    elif shared := sorted(set(sample.seeds) & set(control.seeds)):
        return f"shares {seed_list(shared)} with the control: not independent; declare paired: true"
    if not (control.reproducible and sample.reproducible) and (alone := _alone(control, sample)):
        return (
            f"{alone} made apart in time, on hardware that does not repeat its bits: drift looks like this; "
            "ARGS=--fresh makes them again, side by side"
        )
    return _looked(control.arm, sample.arm) if sample.arm.role == "variant" else ""


def _alone(control: Sample, sample: Sample) -> str:
    """The runs of either arm that have none of the other within ``APART``."""
    told = []
    for one, other in ((control, sample), (sample, control)):
        alone = stands_alone(one.times, other.times)
        lonely = [seed for seed, is_alone in zip(one.seeds, alone, strict=True) if is_alone]
        told += [f"{one.arm.name} {seed_list(lonely)}"] if lonely else []
    return " and ".join(told)


def stands_alone(times: Sequence[Times], others: Sequence[Times]) -> list[bool]:
    """Whether each run has none of ``others`` that was under way within ``APART`` before it began or after it ended."""
    return [
        all(other_began > ended + APART or other_ended < began - APART for other_began, other_ended in others)
        for began, ended in times
    ]


def _looked(*arms: Arm) -> str:
    """Seeds that were added or left out once a difference had been seen."""
    changed = [f"{arm.name} ({arm.looked} then, {len(arm.run_keys)} now)" for arm in arms if arm.looked is not None]
    if not changed:
        return ""
    return f"declared seeds changed after a look, of {' and '.join(changed)}, which is no test; fresh ones confirm"


def _strata(samples: Sequence[Sample]) -> list[str]:
    """Which runs were made with another device, torch or code than others, by what differs; nothing when none were."""
    known = iter(facets([stratum for sample in samples for stratum in sample.strata]))
    found = [[next(known) for _ in sample.strata] for sample in samples]
    apart: dict[str, list[str]] = {}
    for facet in dict.fromkeys(name for runs in found for run in runs for name in run):
        labels = [[run.get(facet, "") for run in runs] for runs in found]
        if len(set().union(*labels) - {""}) > 1:
            apart.setdefault(_mixed("", samples, labels)[0], []).append(facet)
    return [f"runs in more than one stratum, by {', '.join(names)}{told}" for told, names in apart.items()]


def proven_equal(sample: Sample) -> str:
    """Which runs were made with other code that was shown to give equal losses; "" where none were."""
    seeds = [seed for seed, stratum in zip(sample.seeds, sample.strata, strict=True) if stratum.proven]
    parts = sorted({part for stratum in sample.strata for part in stratum.proven})
    if not seeds:
        return ""
    return f"{sample.arm.name} {seed_list(seeds)}: other code of {', '.join(parts)}, proven equal by the golden losses"


def _mixed(title: str, samples: Sequence[Sample], labels: Sequence[Sequence[str]]) -> list[str]:
    """Which runs carry which label, told by the parts that differ; nothing when all carry one."""
    places: dict[str, dict[str, list[int]]] = {}
    for sample, mine in zip(samples, labels, strict=True):
        for seed, label in zip(sample.seeds, mine, strict=True):
            places.setdefault(label, {}).setdefault(sample.arm.name, []).append(seed)
    if len(places) < 2:
        return []
    shared = set.intersection(*(set(label.split()) for label in places))
    told = []
    for label, arms in places.items():
        name = " ".join(part for part in label.split() if part not in shared) or label or "unnamed"
        told.append(f"{name} ({', '.join(f'{arm} {seed_list(seeds)}' for arm, seeds in arms.items())})")
    return [f"{title}: {', '.join(told)}"]


def seed_list(seeds: Sequence[int]) -> str:
    """For example "seeds 1, 2"."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
