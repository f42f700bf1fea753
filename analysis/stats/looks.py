"""Arms judged look by look: after how many blocks, at which share of alpha, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats.eligibility import MIN_BLOCKS, Complete, Sample, bar, bare_difference, complete
from analysis.stats.estimate import Estimate, in_family, independent, looks_until, shares, within_blocks
from analysis.store.schema import Design


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One arm at the last of the looks that it came to. Both samples end with that look: later runs bear on nothing."""

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


@dataclass(frozen=True, kw_only=True)
class Barred:
    """One arm without an interval: it cannot be judged, or not yet."""

    control: Sample
    sample: Sample
    verdict: str
    why: str
    delta: float  # bare difference, NaN where it means nothing


def judge(control: Sample, samples: Sequence[Sample], family: int, design: Design) -> dict[str, Judged | Barred]:
    """Each arm at the look that decides it, or else at the last that it has come to.

    Args:
        control: all of its runs.
        samples: the arms that are judged together.
        family: comparisons that the intervals hold for together, with or without runs.
        design: what was declared.
    """
    results: dict[str, Judged | Barred] = {}
    undecided = list(samples)
    for number in range(1 + len(design.looks)):
        reached: dict[str, Judged] = {}
        for sample in list(undecided):
            looks = looks_until(() if design.independent else design.looks, sample.declared)
            if number >= len(looks):
                undecided.remove(sample)
                continue
            name, look = sample.arm.name, looks[number]
            pair = (control, sample) if design.independent else (control.first(look), sample.first(look))
            before, barred, found = results.get(name), bar(*pair, design), _found(*pair, look, design)
            if barred and barred[0] == "as expected" and not found.awaited:  # a twin; later blocks may tell more
                results[name] = _barred(pair, *barred)
            elif barred and barred[0] != "as expected":
                results[name] = _barred(pair, *barred)
                undecided.remove(sample)
            elif found.awaited:
                waits = replace(before, next=f"next look after {look} blocks") if isinstance(before, Judged) else None
                results[name] = waits or _barred(pair, *_not_done(*pair, found, look, design))
                undecided.remove(sample)
            elif estimate := _estimate(*pair, found, design):
                estimate = replace(estimate, share=shares(looks)[number])
                reached[name] = Judged(control=pair[0], sample=pair[1], estimate=estimate, blocks=found, look=look)
            else:  # too many runs failed; the blocks up to the next look may do
                results[name] = _barred(pair, *_too_few(*pair, found, design))
        estimates = in_family({name: result.estimate for name, result in reached.items()}, family)
        results |= {name: replace(result, estimate=estimates[name]) for name, result in reached.items()}
        decided = {name for name, estimate in estimates.items() if word_of(estimate, design) != "undecided"}
        undecided = [sample for sample in undecided if sample.arm.name not in decided]
    return results


def _found(control: Sample, sample: Sample, look: int, design: Design) -> Complete:
    if not design.independent:
        return complete(control, sample, look)
    both = (control, sample)
    return Complete(
        blocks=sample.blocks,
        left_out=[f"{s.arm.name} run {number} {state}" for s in both for number, state in s.failed.items()],
        waiting=[f"{s.arm.name} run {number} {state}" for s in both for number, state in s.pending.items()],
        awaited=sum(s.declared - s.n - len(s.failed) for s in both),
    )


def _estimate(control: Sample, sample: Sample, found: Complete, design: Design) -> Estimate | None:
    """The difference over the complete blocks; None where they are too few."""
    if design.independent:
        enough = min(control.n, sample.n) >= (1 if design.prior else MIN_BLOCKS)
        return independent(control.values, sample.values, design.prior) if enough else None
    if len(found.blocks) < MIN_BLOCKS:
        return None
    differences = [sample.by_block[block] - control.by_block[block] for block in found.blocks]
    return within_blocks(np.array(differences), design.prior)


def _not_done(control: Sample, sample: Sample, found: Complete, look: int, design: Design) -> tuple[str, str, float]:
    """Verdict, reason and bare difference of an arm whose runs are not all there."""
    told = _counts(control, sample) if design.independent else [f"{len(found.blocks)} of {look} blocks done"]
    why = "; ".join([*told, *found.left_out, *found.waiting])
    return "undecided", why, bare_difference(control, sample, design)


def _too_few(control: Sample, sample: Sample, found: Complete, design: Design) -> tuple[str, str, float]:
    """The same of an arm too few of whose runs have come to their end."""
    n = len(found.blocks)
    blocks = [f"{n} complete block{'' if n == 1 else 's'}, {MIN_BLOCKS} are needed"]
    told = _counts(control, sample) if design.independent else blocks
    return "undecided", "; ".join([*told, *found.left_out]), bare_difference(control, sample, design)


def _counts(control: Sample, sample: Sample) -> list[str]:
    return [f"{s.n} of {s.declared} runs of {s.arm.name} finished" for s in (control, sample) if s.n < s.declared]


def _barred(pair: tuple[Sample, Sample], verdict: str, why: str, delta: float) -> Barred:
    return Barred(control=pair[0], sample=pair[1], verdict=verdict, why=why, delta=delta)


def word_of(estimate: Estimate, design: Design) -> str:
    """What the intervals of a difference say: better, worse, equivalent or undecided."""
    low, high = estimate.interval(design.alpha)
    if low > 0:
        return "worse"
    if high < 0:
        return "better"
    tost_low, tost_high = estimate.equivalence_interval(design.alpha)
    return "equivalent" if -design.margin < tost_low and tost_high < design.margin else "undecided"
