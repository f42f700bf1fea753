"""Hold a training.log against the log of the run made again, line by line.

A log that was made in the same way, with kernels that repeat their bits, is held to its last digit; any other to how
far runs of the same recipe and seed lie apart that were computed in other ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from analysis.agreement import ALPHA, REACH, prior_band, scatter_band
from runners.training_log import TrainingLog

KINDS = ("loss", "validation")
MIN_LOGS = 3  # of other ways: the scatter of fewer says next to nothing
SHOWN = 10  # departures that are told one by one


@dataclass(frozen=True)
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
        place = [parts["device"], *([parts["processor"]] if "processor" in parts else [])]
        platform = "-".join([*place, f"torch{parts['torch'].partition('+')[0]}"])
        return cls(platform, int(parts.get("threads", 0)), log.micro_batch, log.compiled)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        how = "compiled" if self.compiled else "not compiled"
        return f"{self.platform}{threads}, micro-batch {self.micro_batch}, {how}"


@dataclass(frozen=True)
class Known:
    """A log and where it was read."""

    file: Path
    log: TrainingLog

    @property
    def repeats(self) -> bool:
        """Whether the way in which it was made gives the same bits each time."""
        return self.log.header.get("deterministic") == "yes"


@dataclass(frozen=True)
class Row:
    """One line of a log beside the one made again. ``there`` and ``here``: losses in nats. ``allowed``: how far these
    may lie apart; NaN where nothing says so. ``text``: what differs, in words.
    """

    step: int
    kind: str
    there: float
    here: float
    allowed: float
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """One log held against the run made again."""

    file: Path
    exact: bool
    basis: str  # what the differences were held against, in words
    rows: tuple[Row, ...]
    unchecked: tuple[int, ...] = ()  # steps of lines that were not made again
    other: tuple[str, ...] = field(default=())  # departures outside the rows, in words

    @property
    def departs(self) -> Row | None:
        """The first row that does, by its step."""
        return min((row for row in self.rows if row.text), key=lambda row: row.step, default=None)

    @property
    def agrees(self) -> bool:
        """Whether nothing departs."""
        return self.departs is None and not self.other


def hold_exactly(known: Known, again: TrainingLog, steps: int) -> Outcome:
    """Hold the log against ``again``, made in the same way, to the last digit of every line up to ``steps``."""
    log = known.log
    rows = []
    for step, kind in sorted({*log.lines, *again.lines}):
        if step > steps:
            continue
        theirs, ours = log.lines.get((step, kind), ""), again.lines.get((step, kind), "")
        there, here = (_values(side, kind).get(step, np.nan) for side in (log, again))
        text = ""
        if theirs != ours:
            text = f"`{theirs or 'no such line'}` in the log, `{ours or 'no such line'}` made again"
        rows.append(Row(step, kind, there, here, 0.0, text))
    other = []
    if steps >= max(again.steps) and again.footer:
        other = [f"{name}: {text}" for name, text in differences_of_text(log.footer, again.footer)]
    return Outcome(known.file, True, "to the last digit", tuple(rows), unchecked(log, steps), tuple(other))


def differences_of_text(there: Mapping[str, str], here: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names under which two footers differ, and both texts."""
    return [
        (name, f"{there.get(name, 'nothing')} in the log, {here.get(name, 'nothing')} made again")
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]


def hold_statistically(
    known: Known, again: TrainingLog, steps: int, others: Sequence[TrainingLog], sigma: float | None
) -> Outcome:
    """Hold the log against ``again``, made in another way: inside the band that the ``others`` or ``sigma`` give.

    Args:
        known: the log.
        again: the one made again.
        steps: up to which it was.
        others: logs of the same run, computed in yet other ways, that show how far these lie apart.
        sigma: standard deviation of the last validation loss between seeds, where it is known.
    """
    rows: list[Row] = []
    for kind in KINDS:
        there, here = _values(known.log, kind), _values(again, kind)
        beside = [_values(other, kind) for other in others]
        places = [step for step in sorted({*there, *here}) if step <= steps]
        shared = [s for s in places if s in there and s in here and all(s in other for other in beside)]
        band = dict.fromkeys(shared, np.nan)
        if len(beside) >= MIN_LOGS and shared:  # half of the alarms to each kind
            runs = np.array([[other[s] for s in shared] for other in beside])
            # Validations are few and far apart, and their scatter grows manifold from one to the next.
            reach = REACH if kind == "loss" else 1
            band = dict(zip(shared, scatter_band(runs, ALPHA / 2, reach=reach), strict=True))
        if kind == "validation" and sigma:  # which a scatter that rests on few logs may exceed
            band = {s: np.fmin(half, prior_band(sigma, len(shared))) for s, half in band.items()}
        for step in places:
            a, b = there.get(step, np.nan), here.get(step, np.nan)
            allowed, text = float(band.get(step, np.nan)), ""
            if step not in there or step not in here:
                text = f"no {kind} of this step {'in the log' if step not in there else 'made again'}"
            elif abs(b - a) > allowed or not np.isfinite(a):
                text = f"{kind} {a!r} in the log, {b!r} made again, {abs(b - a):.2g} apart; {allowed:.2g} is allowed"
            elif kind == "loss" and known.log.rates[step] != again.rates[step]:
                text = f"learning rate {known.log.rates[step]!r} in the log, {again.rates[step]!r} made again"
            rows.append(Row(step, kind, a, b, allowed, text))
    if len(others) >= MIN_LOGS:
        basis = f"the scatter of {len(others)} logs of this run computed in other ways"
    elif sigma:
        basis = f"the scatter between seeds (sd {sigma:g}), validations alone: fewer than {MIN_LOGS} logs of other ways"
    else:
        basis = "nothing: no scatter is known, so this only shows what differs"
    return Outcome(known.file, False, basis, tuple(rows), unchecked(known.log, steps))


def _values(log: TrainingLog, kind: str) -> Mapping[int, float]:
    return log.losses if kind == "loss" else log.validation


def unchecked(log: TrainingLog, steps: int) -> tuple[int, ...]:
    """Steps of the lines that are not made again when the first ``steps`` are."""
    return tuple(step for step, _ in sorted(log.lines) if step > steps)


def outcome_text(outcome: Outcome) -> str:
    """What came of it, for a terminal."""
    departed = sorted((row for row in outcome.rows if row.text), key=lambda row: row.step)
    said = "agrees" if outcome.agrees else "DEPARTS"
    lines = [f"{outcome.file}: {said}; held {outcome.basis if outcome.exact else f'against {outcome.basis}'}"]
    windows = any(row.kind == "window" for row in outcome.rows)
    lines.append(
        f"  {len(outcome.rows)} {'windows' if windows else 'lines'} made again, {len(departed)} of them depart"
    )
    lines += [f"  {row.kind if row.kind == 'window' else 'step'} {row.step}: {row.text}" for row in departed[:SHOWN]]
    if len(departed) > SHOWN:
        lines.append(f"  … and {len(departed) - SHOWN} more")
    lines += [f"  {text}" for text in outcome.other]
    for kind in ("validation", "loss", "window") if not outcome.exact else ():
        judged = [row for row in outcome.rows if row.kind == kind and np.isfinite(row.allowed) and not row.text]
        if judged:
            last = judged[-1]
            most = max(judged, key=lambda row: abs(row.here - row.there) / row.allowed)
            lines.append(
                f"  {kind}: {last.there:.4f} in the log and {last.here:.4f} made again at the last; nearest to its "
                f"limit at {most.step}: {abs(most.here - most.there):.2g} apart, {most.allowed:.2g} allowed"
            )
    if outcome.unchecked:
        ends = f"{outcome.unchecked[0]} to {outcome.unchecked[-1]}"
        places = f"windows {', '.join(map(str, outcome.unchecked))}" if windows else f"lines of steps {ends}"
        lines.append(f"  not checked: {places} ({len(outcome.unchecked)})")
    return "\n".join(lines)
