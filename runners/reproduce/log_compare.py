"""Hold a training.log against the log of the run made again, line by line.

A log that was made in the same way, with kernels that repeat their bits, is held to its last digit; any other to how
far runs of the same recipe and seed lie apart that were computed in other ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.stats.agreement import ALPHA, REACH, prior_band, scatter_band
from runners.reproduce.training_log import TrainingLog

KINDS = ("loss", "validation")
MIN_LOGS = 5  # of other ways: the scatter of fewer says next to nothing
SAME_RATE = 1e-12  # relative; the last bit of a learning rate may be another elsewhere
SHOWN = 10  # departures that are told one by one


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a run was computed: where, and how the work was split. Equal ways give equal bits."""

    platform: str
    threads: int  # 0 on an accelerator
    micro_batch: int
    compiled: bool

    @classmethod
    def of(cls, log: TrainingLog) -> Way:
        """A log's."""
        parts = log.stratum
        place = [parts.device, *([parts.processor] if parts.processor else [])]
        platform = "-".join([*place, f"torch{parts.torch.partition('+')[0]}"])
        return cls(platform=platform, threads=parts.threads, micro_batch=log.micro_batch, compiled=log.compiled)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        how = "compiled" if self.compiled else "not compiled"
        return f"{self.platform}{threads}, micro-batch {self.micro_batch or 'as fits'}, {how}"


@dataclass(frozen=True)
class Known:
    """A log and where it was read."""

    file: Path
    log: TrainingLog

    @property
    def repeats(self) -> bool:
        """Whether the way in which it was made gives the same bits each time."""
        return self.log.header["deterministic"] == "yes"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a log beside the one made again. ``there`` and ``here``: losses in nats. ``allowed``: how far these
    may lie apart; NaN where nothing says so, and the row is not judged. ``text``: what departs, in words.
    """

    step: int
    kind: str
    there: float
    here: float
    allowed: float
    text: str = ""

    @property
    def judged(self) -> bool:
        """Whether it was held against anything."""
        return bool(self.text) or not math.isnan(self.allowed)

    @property
    def nearness(self) -> float:
        """Of its difference to its limit, as a fraction."""
        return abs(self.here - self.there) / self.allowed if self.allowed else 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One log held against the run made again."""

    file: Path
    exact: bool
    basis: str  # what the differences were held against, in words
    rows: tuple[Row, ...]
    unchecked: tuple[str, ...] = ()  # what was not, in words
    other: tuple[str, ...] = ()  # departures outside the rows, in words

    @property
    def departs(self) -> Row | None:
        """The first row that does, by its step."""
        return min((row for row in self.rows if row.text), key=lambda row: row.step, default=None)

    @property
    def verdict(self) -> str:
        """``agrees``, ``departs``, or ``not checked`` where no row was judged."""
        if self.departs or self.other:
            return "departs"
        return "agrees" if any(row.judged for row in self.rows) else "not checked"


def hold_exactly(known: Known, again: TrainingLog, steps: int, num_steps: int) -> Outcome:
    """Hold the log against ``again``, made in the same way, to the last digit of every line.

    Args:
        known: the log.
        again: the one made again.
        steps: up to which it was.
        num_steps: of the whole run.
    """
    log, whole = known.log, steps >= num_steps
    rows = []
    for step, kind in sorted({*log.lines, *again.lines}):
        if step > steps and not whole:
            continue
        theirs, ours = (side.lines.get((step, kind), "no such line") for side in (log, again))
        there, here = (_values(side, kind).get(step, math.nan) for side in (log, again))
        text = f"`{theirs}` in the log, `{ours}` made again" if theirs != ours else ""
        rows.append(Row(step=step, kind=kind, there=there, here=here, allowed=0.0, text=text))
    if not whole:
        return Outcome(
            file=known.file, exact=True, basis="to the last digit", rows=tuple(rows), unchecked=unchecked(log, steps)
        )
    footers = (log.footer, again.footer)
    names = dict.fromkeys((*footers[0], *footers[1]))
    pairs = {name: tuple(footer.get(name, "nothing") for footer in footers) for name in names}
    other = [f"{name}: {a} in the log, {b} made again" for name, (a, b) in pairs.items() if a != b]
    return Outcome(
        file=known.file, exact=True, basis="to the last digit", rows=tuple(rows), unchecked=(), other=tuple(other)
    )


def hold_statistically(
    known: Known, again: TrainingLog, steps: int, others: Sequence[TrainingLog], sigma: float | None
) -> Outcome:
    """Hold the log against ``again``, made in another way: inside the band that the ``others`` or ``sigma`` give.

    Args:
        known: the log.
        again: the one made again.
        steps: up to which it was.
        others: logs of the same run; those that were computed in yet other ways show how far these lie apart.
        sigma: standard deviation of the last validation loss between seeds, where it is known.
    """
    log = known.log
    ways = {Way.of(other): other for other in others}  # one of each: a copy shows no scatter
    ways.pop(Way.of(log), None)
    reach = [step for step in log.losses if step <= steps]
    beside = [other for other in ways.values() if all(step in other.losses for step in reach)]
    enough = len(beside) >= MIN_LOGS
    rows: list[Row] = []
    for kind in KINDS:
        there, here = _values(log, kind), _values(again, kind)
        places = [step for step in sorted({*there, *here}) if step <= steps]
        shared = [s for s in places if s in there and s in here and all(s in _values(o, kind) for o in beside)]
        band = dict.fromkeys(shared, math.nan)
        if enough and shared:  # half of the alarms to each kind
            runs = np.array([[_values(other, kind)[s] for s in shared] for other in beside])
            # Validations are few and far apart, and their scatter grows manifold from one to the next.
            band = dict(zip(shared, scatter_band(runs, ALPHA / 2, reach=REACH if kind == "loss" else 1), strict=True))
        elif kind == "validation" and sigma:
            band = dict.fromkeys(shared, prior_band(sigma, len(shared), ALPHA / 2))
        for step in places:
            a, b, allowed = there.get(step, math.nan), here.get(step, math.nan), float(band.get(step, math.nan))
            text = ""
            if step not in there or step not in here:
                text = f"no {kind} of this step {'in the log' if step not in there else 'made again'}"
            elif abs(b - a) > allowed or not math.isfinite(a):
                text = f"{kind} {a!r} in the log, {b!r} made again, {abs(b - a):.2g} apart; {allowed:.2g} is allowed"
            elif kind == "loss" and not math.isclose(log.rates[step], again.rates[step], rel_tol=SAME_RATE):
                text = f"learning rate {log.rates[step]!r} in the log, {again.rates[step]!r} made again"
            rows.append(Row(step=step, kind=kind, there=a, here=b, allowed=allowed, text=text))
    if enough:
        basis = f"the scatter of {len(beside)} logs of this run computed in other ways"
    elif sigma:
        basis = f"the scatter between seeds (sd {sigma:g}): fewer than {MIN_LOGS} logs of other ways"
    else:
        basis = f"nothing: fewer than {MIN_LOGS} logs of other ways, and no scatter between seeds is known"
    unjudged = sum(not row.judged for row in rows)
    told = [f"{unjudged} of the lines made again, for which no scatter is known"] if unjudged else []
    told += [*unchecked(log, steps), "gradient norms, bits/byte and the losses by domain, which have no band"]
    return Outcome(file=known.file, exact=False, basis=basis, rows=tuple(rows), unchecked=tuple(told))


def _values(log: TrainingLog, kind: str) -> Mapping[int, float]:
    return log.losses if kind == "loss" else log.validation


def unchecked(log: TrainingLog, steps: int) -> tuple[str, ...]:
    """What is not made again when the first ``steps`` are, in words."""
    left = [step for step, _ in sorted(log.lines) if step > steps]
    return (f"lines of steps {left[0]} to {left[-1]} ({len(left)}), and the footer",) if left else ()


def outcome_text(outcome: Outcome) -> str:
    """What came of it, for a terminal."""
    departed = sorted((row for row in outcome.rows if row.text), key=lambda row: row.step)
    verdict = outcome.verdict
    held = f"held {outcome.basis if outcome.exact else f'against {outcome.basis}'}"
    lines = [f"{outcome.file}: {verdict.upper() if verdict != 'agrees' else verdict}; {held}"]
    what = "windows" if any(row.kind == "window" for row in outcome.rows) else "lines"
    judged = [row for row in outcome.rows if row.judged]
    if outcome.rows:
        lines.append(f"  {len(judged)} {what} made again and held against it, {len(departed)} of them depart")
    lines += [f"  {row.kind if row.kind == 'window' else 'step'} {row.step}: {row.text}" for row in departed[:SHOWN]]
    if len(departed) > SHOWN:
        lines.append(f"  … and {len(departed) - SHOWN} more")
    lines += [f"  {text}" for text in outcome.other]
    for kind in ("validation", "loss", "window") if not outcome.exact else ():
        inside = [row for row in judged if row.kind == kind and not row.text]
        if inside:
            last, most = inside[-1], max(inside, key=lambda row: row.nearness)
            lines.append(
                f"  {kind} at {last.step}: {last.there:.4f} in the log, {last.here:.4f} made again, {last.allowed:.2g} "
                f"allowed; nearest to its limit at {most.step}: {abs(most.here - most.there):.2g} of {most.allowed:.2g}"
            )
    lines += [f"  not checked: {text}" for text in outcome.unchecked]
    return "\n".join(lines)
