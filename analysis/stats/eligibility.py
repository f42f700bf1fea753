"""The runs of an arm that count, and what bars an arm from being compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.store.schema import Arm, Design, counts_items
from analysis.store.stratum import Stratum, facets

if TYPE_CHECKING:
    import pandas as pd  # which a machine that only trains does without

MIN_BLOCKS = 2  # complete ones, for a verdict
RESOLUTION = float(np.finfo(np.float32).eps)
"""Losses are computed in float32: two that are nearer to each other than this share of their size are the same loss."""
APART = timedelta(hours=12)  # farther from each other, two runs were not made side by side
Times = tuple[datetime, datetime]  # when a run began, and ended


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The runs of one arm: those that count, block by block, and why others do not.

    Run number i of an arm is its run in block i. Where seeds are independent it is no more than its number.
    """

    arm: Arm
    blocks: list[int]
    seeds: list[int]
    values: np.ndarray
    speeds: np.ndarray  # tokens/s
    memory: np.ndarray  # bytes
    errors: np.ndarray  # of the metric over validation windows
    are_compiled: list[bool]
    repeat: list[bool]  # whether their bits do
    strata: list[Stratum]
    data: list[str]
    times: list[Times]
    invalid: Mapping[int, str]  # block -> the seed, and why
    failed: Mapping[int, str]  # block -> what broke a run that no gate found invalid
    pending: Mapping[int, str]  # block -> the state of a run that was begun and is not done
    again: list[int]  # seeds of which more than one attempt finished

    @classmethod
    def of(cls, arm: Arm, runs: pd.DataFrame, metric: str) -> Sample:
        """The arm's runs out of the frame of :func:`analysis.store.load.load_runs`."""
        import pandas as pd

        place = {key: block for block, key in enumerate(arm.run_keys)}
        mine = runs[runs["arm"] == arm.name]
        mine = mine.assign(block=mine["run_key"].map(place)).sort_values("block")
        invalid, failed, pending, counted = {}, {}, {}, []
        columns = (mine[name] for name in ("block", "seed", "status", "invalid", "reason", metric))
        for row, (block, seed, status, fault, reason, loss) in enumerate(zip(*columns, strict=True)):
            state = f"{status}{f' ({reason})' if pd.notna(reason) else ''}"
            if pd.notna(fault):
                invalid[block] = f"seed {seed}: {fault}"
            elif status == "FINISHED" and not math.isfinite(loss):
                invalid[block] = f"seed {seed}: {metric} is not a finite number"
            elif status == "FINISHED":
                counted.append(row)
            elif status == "FAILED":
                failed[block] = state
            else:
                pending[block] = state
        good = mine.iloc[counted]
        return cls(
            arm=arm,
            blocks=good["block"].tolist(),
            seeds=good["seed"].tolist(),
            values=good[metric].to_numpy(float),
            speeds=good["final/tokens_per_s"].to_numpy(float),
            memory=good["final/peak_memory_bytes"].to_numpy(float),
            errors=_evaluation_errors(good, metric),
            are_compiled=(good["final/compiled"] == 1).tolist(),
            repeat=good["reproducible"].tolist(),
            strata=[Stratum.parse(text) for text in good["stratum"]],
            data=good["data"].tolist(),
            times=list(zip(good["started"], good["ended"], strict=True)),
            invalid=invalid,
            failed=failed,
            pending=pending,
            again=good.loc[good["finished"] > 1, "seed"].tolist(),
        )

    def first(self, upto: int) -> Sample:
        """The runs of the first ``upto`` blocks alone: what a look at them knows."""
        kept = [place for place, block in enumerate(self.blocks) if block < upto]

        def of_kept(items: list[Any]) -> list[Any]:
            return [items[place] for place in kept]

        def early(told: Mapping[int, str]) -> dict[int, str]:
            return {block: why for block, why in told.items() if block < upto}

        seeds = of_kept(self.seeds)
        return replace(
            self,
            blocks=of_kept(self.blocks),
            seeds=seeds,
            values=self.values[kept],
            speeds=self.speeds[kept],
            memory=self.memory[kept],
            errors=self.errors[kept],
            are_compiled=of_kept(self.are_compiled),
            repeat=of_kept(self.repeat),
            strata=of_kept(self.strata),
            data=of_kept(self.data),
            times=of_kept(self.times),
            invalid=early(self.invalid),
            failed=early(self.failed),
            pending=early(self.pending),
            again=[seed for seed in self.again if seed in seeds],
        )

    @property
    def compiled(self) -> set[bool]:
        """Whether the runs were, one or both."""
        return set(self.are_compiled)

    @property
    def reproducible(self) -> bool:
        """Whether the bits of every run repeat."""
        return all(self.repeat)

    @property
    def eval_se(self) -> float:
        """Mean standard error of the metric over validation windows; NaN without a run."""
        return float(self.errors.mean()) if self.n else math.nan

    @property
    def by_block(self) -> dict[int, float]:
        """The metric of each block's run."""
        return dict(zip(self.blocks, self.values, strict=True))

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
    """Verdict, reason and bare difference of an arm that cannot be compared, however many runs it has; None for others.

    Whether its runs are all there is another question: :func:`complete` answers it look by look.
    """
    both = [control] if sample is control else [control, sample]
    if faults := _faults(both, design):
        return "invalid", "; ".join(faults), math.nan
    if sample is control:
        return None
    delta = bare_difference(control, sample, design)
    if design.screen or control.declared == sample.declared == 1:
        screened = "one block: a number, not a verdict" if control.n and sample.n else "its run is not done"
        return "screen", screened, delta
    if reason := _not_comparable(control, sample, design):
        return "undecided", reason, delta
    if not design.independent and sample.n > 1 and (shared := sorted(set(sample.blocks) & set(control.blocks))):
        apart = np.array([sample.by_block[block] - control.by_block[block] for block in shared])
        twin = sample.arm.role == "check" and sample.arm.expect == "same"
        counted = counts_items(design.metric)
        # Moved, and not by more than a rounding yet: so are short runs. A score need not move at all.
        if twin and (counted or apart.any()) and np.abs(apart).max() <= RESOLUTION * np.abs(sample.values).max():
            what = "scores" if counted else "losses"
            return "as expected", f"its {what} are the control's, as far as float32 shows them", delta
        if len(apart) > 1 and _one(apart, sample.values):
            if counted:
                return "undecided", "the same difference in every block: too few items to see how seeds differ", delta
            return "invalid", f"differs from the control by {delta:.3g} in every block: the change did nothing", delta
    return None


def bare_difference(control: Sample, sample: Sample, design: Design) -> float:
    """Mean difference from the control, over the blocks that both have where there are blocks; NaN without any."""
    if design.independent:
        return float(sample.values.mean() - control.values.mean()) if control.n and sample.n else math.nan
    shared = set(control.blocks) & set(sample.blocks)
    return float(np.mean([sample.by_block[b] - control.by_block[b] for b in shared])) if shared else math.nan


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The first blocks of an arm and the control, as far as they can be compared."""

    blocks: list[int]  # in which both runs count
    left_out: list[str]  # what broke a run of a block, in words
    waiting: list[str]  # runs that are begun and not done, in words
    awaited: int  # blocks without both runs that have not failed


def complete(control: Sample, sample: Sample, upto: int) -> Complete:
    """Of the first ``upto`` blocks: those that are complete, left out, and not done yet."""
    blocks, left_out, waiting, awaited = [], [], [], 0
    mine, others = set(sample.blocks), set(control.blocks)
    for block in range(upto):
        sides = (control, sample)
        if block in mine and block in others:
            blocks.append(block)
        elif broken := [f"{s.arm.name} {s.failed[block]}" for s in sides if block in s.failed]:
            left_out.append(f"block {block}: {', '.join(broken)}")
        else:
            awaited += 1
            waiting += [f"{s.arm.name} of block {block} {s.pending[block]}" for s in sides if block in s.pending]
    return Complete(blocks=blocks, left_out=left_out, waiting=waiting, awaited=awaited)


def _one(values: np.ndarray, losses: np.ndarray) -> bool:
    """Whether ``values``, made of ``losses``, are one and the same as far as these were computed."""
    return bool(np.ptp(values) <= RESOLUTION * np.abs(losses).max())


def _evaluation_errors(runs: pd.DataFrame, metric: str) -> np.ndarray:
    """Standard error over validation windows: it is logged in nats, and a metric in another unit has its share."""
    error, loss = runs.get("final/val_loss_se"), runs.get("final/val_loss")
    if not metric.startswith("final/val") or error is None or loss is None:
        return np.full(len(runs), math.nan)
    return np.asarray(error * runs[metric] / loss, float)


def _faults(samples: Sequence[Sample], design: Design) -> list[str]:
    """Why the runs of these arms mean nothing beside each other."""
    faults = [f"{s.arm.name} {fault}" for s in samples for fault in s.invalid.values()]
    same = [] if counts_items(design.metric) else [s for s in samples if s.n > 1 and _one(s.values, s.values)]
    faults += [f"{s.arm.name}: all seeds gave the same loss" for s in same]
    faults += _strata(samples)
    return faults + _mixed("runs on different data", samples, [s.data for s in samples])


def _not_comparable(control: Sample, sample: Sample, design: Design) -> str:
    """What would bias the difference, or make its error another than the one that is computed; "" if nothing."""
    seeds, others = (dict(zip(s.blocks, s.seeds, strict=True)) for s in (sample, control))
    if design.independent:
        if shared := sorted(set(sample.seeds) & set(control.seeds)):
            return f"shares {seed_list(shared)} with the control: not independent"
    elif strange := sorted(seeds[block] for block in seeds.keys() & others.keys() if seeds[block] != others[block]):
        return f"{seed_list(strange)}: not the control's of the same block"
    if not (control.reproducible and sample.reproducible) and (alone := _alone(control, sample, design)):
        return (
            f"{alone} made apart in time, on hardware that does not repeat its bits: drift looks like this; "
            "ARGS=--fresh reruns them, side by side"
        )
    if sample.arm.role == "variant" and sample.arm.looked:
        return (
            f"seen before with other blocks ({sample.arm.looked}): blocks added or left out after a look are no test; "
            "fresh ones are, by confirm: or first_seed:"
        )
    return ""


def _alone(control: Sample, sample: Sample, design: Design) -> str:
    """The runs of either arm that have none of the other, of their own block if there are blocks, within ``APART``."""
    if not design.independent:
        times, others = (dict(zip(s.blocks, s.times, strict=True)) for s in (sample, control))
        blocks = [b for b in times.keys() & others.keys() if stands_alone([times[b]], [others[b]])[0]]
        return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, sorted(blocks)))}" if blocks else ""
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
