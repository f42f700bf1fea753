"""Arms judged look by look: after how many blocks, at which share of alpha, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats.eligibility import MIN_BLOCKS, Complete, Sample, bare_difference, complete
from analysis.stats.estimate import Estimate, in_family, independent, shares, within_blocks
from analysis.store.schema import Design


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One arm at the last of the looks that it came to."""

    control: Sample
    sample: Sample
    estimate: Estimate
    blocks: Complete  # those that the estimate rests on
    look: int  # blocks that were looked at
    next: str = ""  # what is awaited, where the arm is not decided and more is declared

    @property
    def values(self) -> np.ndarray:
        """Losses of the arm in these blocks."""
        return np.array([self.sample.by_block[block] for block in self.blocks.blocks])

    @property
    def partners(self) -> np.ndarray:
        """The control's in the same blocks."""
        return np.array([self.control.by_block[block] for block in self.blocks.blocks])


def looks_of(design: Design, sample: Sample) -> list[tuple[int, float]]:
    """Numbers of blocks after which the arm is judged, each with its share of alpha."""
    looks = [n for n in design.looks if n < sample.declared]
    looks.append(sample.declared)
    return list(zip(looks, shares(looks), strict=True))


def judge(control: Sample, samples: Sequence[Sample], family: int, design: Design) -> dict[str, Judged]:
    """Each arm at its last look, those left out that have not come to the first."""
    results: dict[str, Judged] = {}
    undecided = list(samples)
    for number in range(1 + len(design.looks)):
        reached: dict[str, Judged] = {}
        for sample in list(undecided):
            looks = looks_of(design, sample)
            if number >= len(looks):
                continue
            look, share = looks[number]
            if result := _at_look(control, sample, look, design):
                reached[sample.arm.name] = replace(result, estimate=replace(result.estimate, share=share))
            else:
                undecided.remove(sample)
                if before := results.get(sample.arm.name):
                    results[sample.arm.name] = replace(before, next=f"next look after {look} blocks")
        estimates = in_family({name: result.estimate for name, result in reached.items()}, family)
        for name, result in reached.items():
            results[name] = replace(result, estimate=estimates[name])
        undecided = [s for s in undecided if word_of(results[s.arm.name].estimate, design) == "undecided"]
    return results


def _at_look(control: Sample, sample: Sample, look: int, design: Design) -> Judged | None:
    """The comparison over the first ``look`` blocks; None while they are not done, or fewer than two are complete."""
    found = complete(control, sample, look)
    if design.independent:
        if control.n + len(control.failed) < control.declared or sample.n + len(sample.failed) < sample.declared:
            return None
        if (design.prior is None and min(control.n, sample.n) < MIN_BLOCKS) or not (control.n and sample.n):
            return None
        estimate = independent(control.values, sample.values, design.prior)
        broken = [f"{s.arm.name} {state}" for s in (control, sample) for state in s.failed.values()]
        found = replace(found, blocks=sample.blocks, left_out=broken)
    else:
        if found.awaited or len(found.blocks) < MIN_BLOCKS:
            return None
        differences = [sample.by_block[block] - control.by_block[block] for block in found.blocks]
        estimate = within_blocks(np.array(differences), design.prior)
    return Judged(control=control, sample=sample, estimate=estimate, blocks=found, look=look)


def not_done(control: Sample, sample: Sample, design: Design) -> tuple[str, str, float]:
    """Verdict, reason and bare difference of an arm whose runs are not all there."""
    delta = bare_difference(control, sample, design)
    if design.independent:
        told = [f"{s.n} of {s.declared} runs of {s.arm.name} finished" for s in (control, sample) if s.n < s.declared]
        waiting = [state for s in (control, sample) for state in s.pending.values()]
    else:
        look = looks_of(design, sample)[0][0]
        found = complete(control, sample, look)
        told = [f"{len(found.blocks)} of {look} blocks done", *found.left_out]
        waiting = found.waiting
        if not found.awaited:
            told = [f"{len(found.blocks)} complete blocks, {MIN_BLOCKS} are needed", *found.left_out]
    return "undecided", "; ".join([*told, *waiting]), delta


def word_of(estimate: Estimate, design: Design) -> str:
    """What the intervals of a difference say: better, worse, equivalent or undecided."""
    low, high = estimate.interval(design.alpha)
    if low > 0:
        return "worse"
    if high < 0:
        return "better"
    tost_low, tost_high = estimate.equivalence_interval(design.alpha)
    return "equivalent" if -design.margin < tost_low and tost_high < design.margin else "undecided"
