"""Runs and their design to one verdict for each arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.estimate import Estimate, Noise, bonferroni, family, paired, welch
from analysis.load import RUN_COLUMNS, require
from analysis.schema import Arm, Design

MIN_PAIRS = 5  # below, pairing costs more in degrees of freedom than it can save
COLUMNS = (
    *("arm", "role", "n", "declared", "mean", "delta", "ci_low", "ci_high", "p", "p_adj", "verdict", "why"),
    *("sigma", "df", "pooled", "pool_p", "mde", "tost_low", "tost_high", "params_delta", "flops_delta"),
    *("tokens_per_s", "tokens_per_s_delta", "tokens_per_s_delta_half", "eval_se", "gates_failed", "flags"),
)


def compare(runs: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Compare every arm with the control and say the result in a word.

    The family of the simultaneous intervals is the declared variants, with or without runs. Where variances pool, the
    test is Dunnett's; else, and for paired designs, it is Welch's (the paired) t with Holm's p and Bonferroni's
    intervals. Arms that check the harness stand outside the family, each compared with the control on its own.
    No run is dropped: an arm with an invalid or a missing run gets no comparison but a reason.

    Args:
        runs: the frame of :func:`analysis.load.load_runs`.
        design: what was declared.

    Returns:
        One row for each arm in the order of the design. Losses are in the metric's unit (nats/token), fractions are
        relative to the control, and NaN or "" stands for what does not apply. Columns:

        - ``arm, role, n, declared``: the arm, its valid finished runs, and how many were declared;
        - ``mean, delta, ci_low, ci_high``: mean of the metric, the difference from the control's mean (lower is
          better) and its simultaneous 1 - alpha interval;
        - ``p, p_adj``: two-sided p, alone and adjusted for the family;
        - ``verdict, why``: invalid, better, worse, equivalent, undecided, screen, for a control against itself
          "as expected" or differs, and "" for a sound control; then the reasons, joined by "; ";
        - ``sigma, df, pooled, pool_p``: seed standard deviation behind the interval (of the differences, if paired),
          its degrees of freedom, whether it is pooled over the arms, and Bartlett's p of whether it may be;
        - ``mde``: the smallest true effect that would be called better or worse 4 times in 5;
        - ``tost_low, tost_high``: the unadjusted 1 - 2 alpha interval that has to lie inside the margin;
        - ``params_delta, flops_delta``: cost relative to the control;
        - ``tokens_per_s, tokens_per_s_delta, tokens_per_s_delta_half``: geometric mean of the throughput, its change,
          and the half width of that change's 95 % interval (Welch, on logarithms);
        - ``eval_se``: mean standard error of the metric over validation windows;
        - ``gates_failed, flags``: number of invalid runs, and what a reader should know besides.

    Raises:
        ValueError: when ``runs`` lacks a column, or holds a run twice or one that the design does not declare.
    """
    require(runs, (*RUN_COLUMNS, design.metric, "final/tokens_per_s"))
    _check_declared(runs, design)
    control, *others = (_Sample.of(arm, runs, design.metric) for arm in design.arms)
    bars = {s.arm.name: _bar(control, s, design) for s in (control, *others)}
    ready = [s for s in others if bars[s.arm.name] is None]
    sizes = [s.declared for s in others if s.arm.role == "variant"]
    results, noise = _compare(control, [s for s in ready if s.arm.role == "variant"], sizes, design)
    for sample in ready:
        if sample.arm.role == "check":
            results |= _compare(control, [sample], [sample.n], design)[0]
    rows = [_control_row(control, noise) | _barred(bars[control.arm.name])]
    for sample in others:
        row = _row(sample, control)
        result = results.get(sample.arm.name)
        rows.append(row | (_judged(result, row, design) if result else _barred(bars[sample.arm.name])))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"df": float})


# Runs of an arm, and what bars them from being compared


@dataclass(frozen=True)
class _Sample:
    """The runs of one arm: those that count, in the order of their seeds, and why others do not."""

    arm: Arm
    seeds: list[int]
    values: np.ndarray
    speeds: np.ndarray  # tokens/s
    strata: list[str]
    eval_se: float
    invalid: Mapping[int, str]  # seed -> why

    @classmethod
    def of(cls, arm: Arm, runs: pd.DataFrame, metric: str) -> _Sample:
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
            good["stratum"].tolist(),
            float(good[f"{metric}_se"].mean()) if f"{metric}_se" in good else math.nan,
            invalid,
        )

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def declared(self) -> int:
        return len(self.arm.run_keys)


def _check_declared(runs: pd.DataFrame, design: Design) -> None:
    declared = {(key, arm.name) for arm in design.arms for key in arm.run_keys}
    given = list(zip(runs["run_key"], runs["arm"], strict=True))
    if strangers := set(given) - declared:
        raise ValueError(f"runs that the design does not declare: {sorted(strangers)}")
    if len(given) > len(set(given)):
        raise ValueError("the frame holds a run twice")


def _bar(control: _Sample, sample: _Sample, design: Design) -> tuple[str, str, float] | None:
    """Verdict, reason and bare difference of an arm that cannot be compared; None for one that can."""
    both = [control] if sample is control else [control, sample]
    faults = [f"{s.arm.name} seed {seed}: {fault}" for s in both for seed, fault in s.invalid.items()]
    faults += [f"{s.arm.name}: all seeds gave the same loss" for s in both if s.n > 1 and np.ptp(s.values) == 0]
    faults += _mixed_strata(both)
    if faults:
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
    if design.paired and sample.arm.role == "variant":
        if unmatched := sorted(set(sample.seeds) - set(control.seeds)):
            return "undecided", f"paired, but the control has no run with {_seeds(unmatched)}", delta
        if sample.n < MIN_PAIRS:
            return "undecided", f"paired analysis needs {MIN_PAIRS} shared seeds, here {sample.n}", delta
    return None


def _mixed_strata(samples: Sequence[_Sample]) -> list[str]:
    """Which runs lie in which stratum, told by the parts that differ; nothing when all lie in one."""
    places: dict[str, dict[str, list[int]]] = {}
    for sample in samples:
        for seed, stratum in zip(sample.seeds, sample.strata, strict=True):
            places.setdefault(stratum, {}).setdefault(sample.arm.name, []).append(seed)
    if len(places) < 2:
        return []
    shared = set.intersection(*(set(stratum.split()) for stratum in places))
    told = []
    for stratum, arms in places.items():
        name = " ".join(part for part in stratum.split() if part not in shared) or stratum or "unnamed"
        told.append(f"{name} ({', '.join(f'{arm} {_seeds(seeds)}' for arm, seeds in arms.items())})")
    return [f"runs in more than one stratum: {', '.join(told)}"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


# Comparisons of the arms that can be compared


@dataclass(frozen=True)
class _Result:
    """One arm's estimate and what there is to say of how it came about."""

    arm: Arm
    estimate: Estimate
    noise: Noise | None  # None if paired: no sigma of the arms enters
    notes: list[str]
    flags: list[str]


def _compare(
    control: _Sample, samples: Sequence[_Sample], sizes: Sequence[int], design: Design
) -> tuple[dict[str, _Result], Noise]:
    """Results of the ``samples``, all of one role, and the noise of the control and them."""
    values = {sample.arm.name: sample.values for sample in samples}
    if design.paired and samples and samples[0].arm.role == "variant":
        own = Noise.of({control.arm.name: control.values})
        return _compare_paired(control, samples, len(sizes), design.alpha), own
    noise = Noise.of({control.arm.name: control.values} | values)
    results = {}
    estimates = family(control.values, values, sizes, noise, design.alpha)
    for sample in samples:
        lenders = noise.arms if noise.pools else [a for a in (control.arm.name, sample.arm.name) if a in noise.arms]
        single = [f"one seed of {s.arm.name}" for s in (control, sample) if s.n == 1]
        notes = [f"{' and '.join(single)}: sigma borrowed from {', '.join(lenders)}"] if single else []
        flags = [] if noise.pools else [f"variances differ (Bartlett p {noise.pool_p:.2g}): Welch's test"]
        flags += _outlier_flag(sample, noise)
        if shared := sorted(set(sample.seeds) & set(control.seeds)):
            flags.append(f"not paired, yet shares {_seeds(shared)} with the control")
        results[sample.arm.name] = _Result(sample.arm, estimates[sample.arm.name], noise, notes, flags)
    return results, noise


def _compare_paired(control: _Sample, samples: Sequence[_Sample], size: int, alpha: float) -> dict[str, _Result]:
    by_seed = dict(zip(control.seeds, control.values, strict=True))
    partners = {sample.arm.name: np.array([by_seed[seed] for seed in sample.seeds]) for sample in samples}
    estimates = bonferroni({s.arm.name: paired(partners[s.arm.name], s.values) for s in samples}, size, alpha)
    results = {}
    for sample in samples:
        correlation = np.corrcoef(partners[sample.arm.name], sample.values)[0, 1]
        flag = f"paired over {sample.n} seeds, correlation {correlation:+.2f}"
        results[sample.arm.name] = _Result(sample.arm, estimates[sample.arm.name], None, [], [flag])
    return results


def _outlier_flag(sample: _Sample, noise: Noise) -> list[str]:
    far = [sample.seeds[i] for i in noise.outliers.get(sample.arm.name, [])]
    return [f"outlier: {_seeds(far)}"] if far else []


# Rows


def _row(sample: _Sample, control: _Sample) -> dict[str, Any]:
    """What is known of an arm whether or not it can be compared."""
    row = {
        "arm": sample.arm.name,
        "role": sample.arm.role,
        "n": sample.n,
        "declared": sample.declared,
        "mean": float(sample.values.mean()) if sample.n else math.nan,
        **{"verdict": "", "why": "", "flags": "", "pooled": False},
        "params_delta": sample.arm.num_params / control.arm.num_params - 1,
        "flops_delta": sample.arm.flops_per_token / control.arm.flops_per_token - 1,
        "eval_se": sample.eval_se,
        "gates_failed": len(sample.invalid),
    }
    if sample.n:
        row["tokens_per_s"] = math.exp(np.log(sample.speeds).mean())
    if sample.n and control.n and sample is not control:
        change = welch(np.log(control.speeds), np.log(sample.speeds))
        half = float(stats.t.isf(0.025, change.df)) * change.se
        row["tokens_per_s_delta"] = math.expm1(change.delta)
        row["tokens_per_s_delta_half"] = math.exp(change.delta) * math.sinh(half)
    return row


def _control_row(control: _Sample, noise: Noise) -> dict[str, Any]:
    own = noise if noise.pools else Noise.of({control.arm.name: control.values})
    return _row(control, control) | {
        "sigma": own.sigma,
        "df": own.df,
        "pooled": noise.pools,
        "pool_p": noise.pool_p,
        "flags": "; ".join(_outlier_flag(control, noise)),
    }


def _barred(bar: tuple[str, str, float] | None) -> dict[str, Any]:
    return dict(zip(("verdict", "why", "delta"), bar, strict=True)) if bar else {}


def _judged(result: _Result, row: Mapping[str, Any], design: Design) -> dict[str, Any]:
    estimate, noise = result.estimate, result.noise
    (low, high), (tost_low, tost_high) = estimate.interval, estimate.equivalence_interval(design.alpha)
    word = _word(estimate, design)
    verdict, reasons = _expected(result.arm, word, max(-low, high) < design.margin, design.alpha)
    if word in ("better", "worse") and max(-low, high) < design.margin:
        reasons.append("within margin")
    if verdict == "undecided":
        reasons.append("shows neither a difference nor equivalence")
        if estimate.p_adj < design.alpha:
            reasons.append("Holm's p is below alpha, but the simultaneous interval includes 0")
    elif result.arm.role == "variant":
        reasons += _unmatched(row)
    return {
        "delta": estimate.delta,
        "ci_low": low,
        "ci_high": high,
        "p": estimate.p,
        "p_adj": estimate.p_adj,
        "verdict": verdict,
        "why": "; ".join(reasons + result.notes),
        "sigma": estimate.sigma,
        "df": estimate.df,
        "pooled": noise is not None and noise.pools,
        "pool_p": noise.pool_p if noise else math.nan,
        "mde": estimate.detectable,
        "tost_low": tost_low,
        "tost_high": tost_high,
        "flags": "; ".join(result.flags),
    }


def _word(estimate: Estimate, design: Design) -> str:
    low, high = estimate.interval
    if low > 0:
        return "worse"
    if high < 0:
        return "better"
    tost_low, tost_high = estimate.equivalence_interval(design.alpha)
    return "equivalent" if -design.margin < tost_low and tost_high < design.margin else "undecided"


def _expected(arm: Arm, word: str, within: bool, alpha: float) -> tuple[str, list[str]]:
    """The verdict and how it stands to what was expected of the arm; ``word`` itself for all but one kind of arm."""
    differs = word in ("better", "worse")
    if arm.role == "check" and arm.expect == "same":  # the control against itself
        if differs:
            return "differs", [f"chance: 1 in {1 / alpha:.0f} honest rows will"]
        return "as expected", []
    if arm.role == "check" and arm.expect == "worse":
        if word == "worse":
            return word, ["known-bad control, as expected"]
        return word, ["known-bad control not seen: this design is too weak for its budget"]
    if arm.expect is None:
        return word, []
    if word == "undecided":
        return word, [f"expected {arm.expect}, which stays open"]
    agrees = (not differs or within) if arm.expect == "same" else word == arm.expect
    return word, [f"as expected ({arm.expect})" if agrees else f"contradicts the expectation ({arm.expect})"]


def _unmatched(row: Mapping[str, Any]) -> list[str]:
    """Costs that differ from the control's, as far as the second digit of a percentage shows it."""
    costs = {"parameters": row["params_delta"], "FLOPs": row["flops_delta"]}
    told = [
        f"{100 * abs(x):.1f} % {'more' if x > 0 else 'fewer'} {name}" for name, x in costs.items() if abs(x) >= 0.0005
    ]
    return [f"at {' and '.join(told)}"] if told else []
