"""The runs of an arm that count, and what bars an arm from being compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.schema import Arm, Design

MIN_PAIRS = 5  # below, pairing costs more in degrees of freedom than it can save
APART = pd.Timedelta(hours=12)  # without a run in between, two sets of runs were not made side by side


@dataclass(frozen=True)
class Sample:
    """The runs of one arm: those that count, in the order of their seeds, and why others do not."""

    arm: Arm
    seeds: list[int]
    values: np.ndarray
    speeds: np.ndarray  # tokens/s
    memory: np.ndarray  # bytes
    strata: list[str]
    data: list[str]
    began: pd.Timestamp
    ended: pd.Timestamp
    reproducible: bool
    eval_se: float
    invalid: Mapping[int, str]  # seed -> why

    @classmethod
    def of(cls, arm: Arm, runs: pd.DataFrame, metric: str) -> Sample:
        """The arm's runs out of the frame of :func:`analysis.load.load_runs`."""
        mine = runs[runs["arm"] == arm.name].sort_values(["seed", "run_key"])
        invalid, counted = {}, []
        columns = (mine[name] for name in ("seed", "status", "invalid", metric))
        for place, (seed, status, fault, loss) in enumerate(zip(*columns, strict=True)):
            if pd.notna(fault):
                invalid[seed] = str(fault)
            elif status == "FINISHED" and not math.isfinite(loss):
                invalid[seed] = f"{metric} is not a finite number"
            elif status == "FINISHED":
                counted.append(place)
        good = mine.iloc[counted]
        return cls(
            arm,
            good["seed"].tolist(),
            good[metric].to_numpy(float),
            good["final/tokens_per_s"].to_numpy(float),
            good["final/peak_memory_bytes"].to_numpy(float),
            good["stratum"].tolist(),
            good["data"].tolist(),
            good["started"].min(),
            good["ended"].max(),
            bool(good["reproducible"].all()),
            float(good[f"{metric}_se"].mean()) if f"{metric}_se" in good else math.nan,
            invalid,
        )

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
    short = [
        f"{s.n} of {s.declared} runs {'of the control ' if s is not sample else ''}finished"
        for s in both
        if s.n < s.declared
    ]
    if short:
        return "undecided", "; ".join(short), delta
    if sample is control:
        return None
    if design.screen or control.n == sample.n == 1:
        return "screen", "one seed each: a number, not a verdict", delta
    if reason := _not_independent(control, sample, design):
        return "undecided", reason, delta
    return None


def _faults(samples: Sequence[Sample]) -> list[str]:
    """Why the runs of these arms mean nothing beside each other."""
    faults = [f"{s.arm.name} seed {seed}: {fault}" for s in samples for seed, fault in s.invalid.items()]
    faults += [f"{s.arm.name}: all seeds gave the same loss" for s in samples if s.n > 1 and np.ptp(s.values) == 0]
    faults += _mixed("runs in more than one stratum", samples, [s.strata for s in samples])
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
    gap = max(sample.began - control.ended, control.began - sample.ended)
    if gap > APART and not (control.reproducible and sample.reproducible):
        return "made apart in time from the control, on hardware that does not repeat its bits: drift looks like this"
    return _looked(control, sample, design) if sample.arm.role == "variant" else ""


def _looked(control: Sample, sample: Sample, design: Design) -> str:
    """Seeds that were added once a verdict had been seen."""
    seen = {s.arm.name: design.looked.get(s.arm.run_keys[0], s.declared) for s in (control, sample)}
    added = [
        f"{s.declared - seen[s.arm.name]} of {s.declared} seeds of {s.arm.name}"
        for s in (control, sample)
        if s.declared > seen[s.arm.name]
    ]
    return f"{' and '.join(added)} were added after a look, which is no test; fresh ones confirm" if added else ""


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
