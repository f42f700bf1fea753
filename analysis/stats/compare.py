"""Runs and their design to one verdict for each arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats.eligibility import Sample, bar, proven_equal, seed_list
from analysis.stats.estimate import Estimate, Noise, bonferroni, family, paired, t_quantile, welch
from analysis.stats.power import detectable_effect, noncentrality
from analysis.stats.worth import Scaling
from analysis.store.load import RUN_COLUMNS, require
from analysis.store.schema import Arm, Design

VERDICTS = ("better", "worse", "equivalent", "undecided", "invalid", "screen", "as expected", "differs")
COLUMNS = (
    *("arm", "role", "n", "declared", "mean", "delta", "ci_low", "ci_high", "p", "p_adj", "verdict", "why"),
    *("sigma", "df", "pooled", "pool_p", "control_p", "mde", "tost_low", "tost_high"),
    *("worth", "worth_low", "worth_high", "params_delta", "flops_delta", "memory_delta", "tokens_per_s"),
    *("tokens_per_s_delta", "tokens_per_s_low", "tokens_per_s_high"),
    *("iso_delta", "iso_low", "iso_high", "iso_verdict", "eval_se", "gates_failed", "flags"),
)


def compare(runs: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Compare every arm with the control and say the result in a word.

    The family of the simultaneous intervals is the declared variants, with or without runs. Where variances pool, the
    test is Dunnett's, as far as the arm's own scatter bears it out; else, and for paired designs, it is Welch's (the
    paired) t with Holm's p and Bonferroni's intervals. Arms that check the harness stand outside the family, each
    compared with the control on its own.
    No run is dropped: an arm with an invalid or a missing run gets no comparison but a reason.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`.
        design: what was declared.

    Returns:
        One row for each arm in the order of the design, budgets left out. Losses are in the metric's unit
        (nats/token), fractions are relative to the control, and NaN or "" stands for what does not apply. Columns:

        - ``arm, role, n, declared``: the arm, its valid finished runs, and how many were declared;
        - ``mean, delta, ci_low, ci_high``: mean of the metric, the difference from the control's mean (lower is
          better) and its simultaneous 1 - alpha interval;
        - ``p, p_adj``: two-sided p, alone and adjusted for the family;
        - ``verdict, why``: invalid, better, worse, equivalent, undecided, screen, for a control against itself
          "as expected" or differs, and "" for a sound control; then the reasons, joined by "; ";
        - ``sigma, df, pooled, pool_p, control_p``: seed standard deviation behind the interval (of the differences, if
          paired), its degrees of freedom, whether it is pooled over the arms, and the p of the two tests of whether
          it may be: Bartlett's over all arms, and an F test of a control noisier than the others together;
        - ``mde``: the smallest true effect that would be called better or worse 4 times in 5;
        - ``tost_low, tost_high``: the unadjusted 1 - 2 alpha interval that has to lie inside the margin;
        - ``worth, worth_low, worth_high``: what the difference is worth in training data, as a fraction of the
          control's tokens (:mod:`analysis.stats.worth`); infinite beyond the budgets that ran, NaN without any;
        - ``params_delta, flops_delta, memory_delta``: cost relative to the control;
        - ``tokens_per_s``: geometric mean of the throughput; ``tokens_per_s_delta, tokens_per_s_low,
          tokens_per_s_high``: its change and the 95 % interval of that (Welch, on logarithms);
        - ``iso_delta, iso_low, iso_high, iso_verdict``: loss minus the control's after equal training time, its
          interval, and "better", "worse" or "undecided per second", "" where the budgets do not tell;
        - ``eval_se``: mean standard error of the metric over validation windows;
        - ``gates_failed, flags``: number of invalid runs, and what a reader should know besides.

    Raises:
        ValueError: when ``runs`` lacks a column, or holds a run twice or one that the design does not declare.
    """
    require(runs, (*RUN_COLUMNS, design.metric, "final/tokens_per_s", "final/peak_memory_bytes", "final/compiled"))
    _check_declared(runs, design)
    control, *others = (Sample.of(arm, runs, design.metric) for arm in design.compared)
    bars = {s.arm.name: bar(control, s, design) for s in (control, *others)}
    ready = [s for s in others if bars[s.arm.name] is None]
    sizes = [s.declared for s in others if s.arm.role == "variant"]
    results, noise = _compare(control, [s for s in ready if s.arm.role == "variant"], sizes, design)
    for sample in ready:
        if sample.arm.role == "check":
            results |= _compare(control, [sample], [sample.n], design)[0]
    # Budgets have other seeds than the pairs: what a paired difference is worth has no error that is known.
    scaling = None if design.paired else Scaling.of(runs, design)
    rows = [_control_row(control, noise, design) | _barred(bars[control.arm.name])]
    for sample in others:
        row = _row(sample, control)
        if result := results.get(sample.arm.name):
            detectable = _detectable(result, control, sample, sizes, design.alpha)
            rows.append(_judged(result, row, scaling, design) | {"mde": detectable})
        else:
            flags = _outlier_flag(sample, Noise.of({sample.arm.name: sample.values})) + _history(sample)
            rows.append(row | _barred(bars[sample.arm.name]) | {"flags": "; ".join(flags)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"df": float})


def _check_declared(runs: pd.DataFrame, design: Design) -> None:
    declared = {(key, arm.name) for arm in design.arms for key in arm.run_keys}
    given = list(zip(runs["run_key"], runs["arm"], strict=True))
    if strangers := set(given) - declared:
        raise ValueError(f"runs that the design does not declare: {sorted(strangers)}")
    if len(given) > len(set(given)):
        raise ValueError("the frame holds a run twice")


# Comparisons of the arms that can be compared


@dataclass(frozen=True, kw_only=True)
class _Result:
    """One arm's estimate and what there is to say of how it came about."""

    arm: Arm
    estimate: Estimate
    noise: Noise | None  # None if paired: no sigma of the arms enters
    notes: list[str]
    flags: list[str]


def _compare(
    control: Sample, samples: Sequence[Sample], sizes: Sequence[int], design: Design
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
        flags = [] if noise.pools else [f"variances differ ({noise.check}): Welch's test"]
        flags += _outlier_flag(sample, noise) + _history(sample) + _compiled_otherwise(control, sample)
        estimate = estimates[sample.arm.name]
        if estimate.widened(design.alpha):
            flags.append("interval by own scatter")
        results[sample.arm.name] = _Result(arm=sample.arm, estimate=estimate, noise=noise, notes=notes, flags=flags)
    return results, noise


def _compare_paired(control: Sample, samples: Sequence[Sample], size: int, alpha: float) -> dict[str, _Result]:
    partners = {sample.arm.name: sample.partners(control) for sample in samples}
    estimates = bonferroni({s.arm.name: paired(partners[s.arm.name], s.values) for s in samples}, size, alpha)
    results = {}
    for sample in samples:
        correlation = np.corrcoef(partners[sample.arm.name], sample.values)[0, 1]
        differences = Noise.of({sample.arm.name: sample.values - partners[sample.arm.name]})
        flags = [f"paired over {sample.n} seeds, correlation {correlation:+.2f}"]
        flags += _outlier_flag(sample, differences) + _history(sample) + _compiled_otherwise(control, sample)
        results[sample.arm.name] = _Result(
            arm=sample.arm, estimate=estimates[sample.arm.name], noise=None, notes=[], flags=flags
        )
    return results


def _outlier_flag(sample: Sample, noise: Noise) -> list[str]:
    far = [sample.seeds[i] for i in noise.outliers.get(sample.arm.name, [])]
    return [f"outlier: {seed_list(far)}"] if far else []


# Rows


def _row(sample: Sample, control: Sample) -> dict[str, Any]:
    """What is known of an arm whether or not it can be compared."""
    alike = sample.n and control.n and len(control.compiled | sample.compiled) == 1  # one way to compute
    beside = alike and sample.beside(control)
    row = {
        "arm": sample.arm.name,
        "role": sample.arm.role,
        "n": sample.n,
        "declared": sample.declared,
        "mean": float(sample.values.mean()) if sample.n else math.nan,
        **{"verdict": "", "why": "", "flags": "", "pooled": False},
        **dict.fromkeys(("tokens_per_s_delta", "tokens_per_s_low", "tokens_per_s_high"), math.nan),
        "iso_verdict": "",
        "params_delta": sample.arm.num_params / control.arm.num_params - 1,
        "flops_delta": sample.arm.flops_per_token / control.arm.flops_per_token - 1,
        "memory_delta": float(sample.memory.mean() / control.memory.mean() - 1) if alike else math.nan,
        "eval_se": sample.eval_se,
        "gates_failed": len(sample.invalid),
    }
    if sample.n:
        row["tokens_per_s"] = math.exp(np.log(sample.speeds).mean())
    if beside and sample is not control:
        change = welch(np.log(control.speeds), np.log(sample.speeds))
        half = t_quantile(0.025, change.df) * change.se
        row["tokens_per_s_delta"] = math.expm1(change.delta)
        row["tokens_per_s_low"], row["tokens_per_s_high"] = (math.expm1(change.delta + end) for end in (-half, half))
    return row


def _control_row(control: Sample, noise: Noise, design: Design) -> dict[str, Any]:
    own = noise if noise.pools else Noise.of({control.arm.name: control.values})
    return _row(control, control) | {
        "sigma": own.sigma,
        "df": own.df,
        "pooled": noise.pools,
        "pool_p": noise.pool_p,
        "control_p": noise.control_p,
        "flags": "; ".join(_declared_anew(design) + _outlier_flag(control, noise) + _history(control)),
    }


def _declared_anew(design: Design) -> list[str]:
    """What is judged by other measures than at the first look."""
    variants = sum(arm.role == "variant" for arm in design.arms)
    changes = []
    for name, then in design.looked.items():
        if name == "variants":
            changes += [f"{then} variants then, {variants} now"] if then > variants else []
        elif then != (now := getattr(design, name)):
            changes.append(f"{name} {then} then, {now} now")
    return [f"changed since the first look: {', '.join(changes)}"] if changes else []


def _history(sample: Sample) -> list[str]:
    """What a reader should know of how the runs came about."""
    again = [f"{seed_list(sample.again)} finished more than once, the newest counts"] if sample.again else []
    return again + [text for text in [proven_equal(sample)] if text]


def _compiled_otherwise(control: Sample, sample: Sample) -> list[str]:
    """What compiles and what does not round otherwise, which is noise; but how fast they are says nothing."""
    if len(control.compiled | sample.compiled) == 1:
        return []
    told = {(False,): "not compiled", (True,): "compiled", (False, True): "partly compiled"}
    mine, theirs = (told[tuple(sorted(s.compiled))] for s in (sample, control))
    return [f"{mine}, the control {theirs}: speed and memory are not comparable"]


def _barred(bar: tuple[str, str, float] | None) -> dict[str, Any]:
    return dict(zip(("verdict", "why", "delta"), bar, strict=True)) if bar else {}


def _detectable(result: _Result, control: Sample, sample: Sample, sizes: Sequence[int], alpha: float) -> float:
    """The smallest true effect that this design calls better or worse with chance 0.8."""
    estimate = result.estimate
    if not (result.noise and result.noise.pools):
        return noncentrality(estimate.critical, estimate.df) * estimate.se
    others = list(sizes)
    if sample.arm.role == "variant":
        others.remove(sample.n)
    else:  # compared on its own
        others = []
    return detectable_effect(estimate.sigma, control.n, (sample.n, *sorted(others)), alpha=alpha)


def _judged(result: _Result, row: Mapping[str, Any], scaling: Scaling | None, design: Design) -> dict[str, Any]:
    """The row of an arm that was compared."""
    estimate, noise = result.estimate, result.noise
    (low, high), (tost_low, tost_high) = estimate.interval(design.alpha), estimate.equivalence_interval(design.alpha)
    word = _word(estimate, design)
    verdict, reasons = _expected(result.arm, word, max(-low, high) < design.margin, design.alpha)
    if word in ("better", "worse") and max(-low, high) < design.margin:
        reasons.append("within margin")
    if verdict == "undecided":
        reasons.append("shows neither a difference nor equivalence")
    if word not in ("better", "worse") and estimate.p_adj < design.alpha:
        reasons.append("Holm's p is below alpha, but the simultaneous interval includes 0")
    judged = {
        **row,
        "delta": estimate.delta,
        "ci_low": low,
        "ci_high": high,
        "p": estimate.p,
        "p_adj": estimate.p_adj,
        "verdict": verdict,
        "sigma": estimate.sigma,
        "df": estimate.df,
        "pooled": noise is not None and noise.pools,
        "pool_p": noise.pool_p if noise else math.nan,
        "control_p": noise.control_p if noise else math.nan,
        "tost_low": tost_low,
        "tost_high": tost_high,
        "flags": "; ".join(result.flags),
        **_worth(row, (high - low) / 2, scaling),
        **_at_equal_time(row, word, (high - low) / 2, scaling),
    }
    if result.arm.role == "variant":
        reasons += _unmatched(judged) if verdict != "undecided" else []
        told = judged["iso_verdict"]
        reasons += [told] if told and not told.startswith(verdict) else []
    return judged | {"why": "; ".join(reasons + result.notes)}


def _worth(row: Mapping[str, Any], half: float, scaling: Scaling | None) -> dict[str, float]:
    if scaling is None:
        return {}
    return dict(zip(("worth", "worth_low", "worth_high"), scaling.worth(row["mean"], row["n"], half), strict=True))


def _at_equal_time(row: Mapping[str, Any], word: str, half: float, scaling: Scaling | None) -> dict[str, Any]:
    """The iso-time comparison; without budgets only where loss and speed point the same way."""
    speed = tuple(1 + row[f"tokens_per_s_{end}"] for end in ("delta", "low", "high"))
    if not all(map(math.isfinite, speed)):
        return {}
    found = scaling.at_equal_time(row["mean"], row["n"], half, speed) if scaling else None
    if found is None:
        sure = (word == "better" and speed[1] >= 1) or (word == "worse" and speed[2] <= 1)
        return {"iso_verdict": f"{word} per second"} if sure else {}
    delta, low, high = found
    told = "worse" if low > 0 else "better" if high < 0 else "undecided"
    return {"iso_delta": delta, "iso_low": low, "iso_high": high, "iso_verdict": f"{told} per second"}


def _word(estimate: Estimate, design: Design) -> str:
    low, high = estimate.interval(design.alpha)
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
            return "differs", [f"chance, in at most 1 of {1 / alpha:.0f} honest rows"]
        return "as expected", [] if word == "equivalent" else ["not shown equivalent"]
    if arm.role == "check" and arm.expect == "worse":
        return word, [
            {
                "worse": "known-bad control, as expected",
                "better": "known-bad control found better: do not trust this experiment before you know why",
                "equivalent": "known-bad control makes no difference here: such runs cannot tell good from bad",
            }.get(word, "known-bad control not seen: this design is too weak for its budget")
        ]
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
