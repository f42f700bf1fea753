"""Runs and their design to one verdict for each arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats.eligibility import Sample, bar, proven_equal, seed_list
from analysis.stats.estimate import independent, outliers, programme_p, t_quantile, within_blocks
from analysis.stats.looks import Barred, Judged, judge, word_of
from analysis.stats.power import Layout, detectable_effect
from analysis.stats.worth import Scaling
from analysis.store.load import RUN_COLUMNS, require
from analysis.store.schema import Arm, Design

VERDICTS = ("better", "worse", "equivalent", "undecided", "invalid", "screen", "as expected", "differs")
_DECIDED = ("better", "worse", "equivalent", "invalid", "differs")
COLUMNS = (
    *("arm", "role", "n", "declared", "mean", "delta", "ci_low", "ci_high", "p", "p_adj", "p_programme"),
    *("verdict", "why", "sigma", "df", "own_sd", "correlation", "independent_half", "look"),
    *("mde", "tost_low", "tost_high", "worth", "worth_low", "worth_high"),
    *("params_delta", "flops_delta", "memory_delta", "tokens_per_s"),
    *("tokens_per_s_delta", "tokens_per_s_low", "tokens_per_s_high"),
    *("iso_delta", "iso_low", "iso_high", "iso_verdict", "eval_se", "gates_failed", "flags"),
)


def compare(runs: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Compare every arm with the control and say the result in a word.

    The difference is taken block by block, between two runs that share initial values and batches; its standard
    deviation is moderated by the base's prior. The family of the simultaneous intervals (Bonferroni) and of Holm's p is
    the declared variants, with or without runs; arms that check the harness are compared one at a time. Where looks
    are declared, an arm is judged at each of them, at the look's share of alpha, until it is decided.
    An invalid run makes its arm invalid. A block in which a run failed for another reason is left out, and said; while
    runs are not done, the arm is undecided.

    Args:
        runs: the frame of :func:`analysis.store.load.load_runs`.
        design: what was declared.

    Returns:
        One row for each arm in the order of the design, budgets left out. Losses are in the metric's unit
        (nats/token), fractions are relative to the control, and NaN or "" stands for what does not apply. Columns:

        - ``arm, role, n, declared``: the arm, the blocks of it that the comparison rests on (of the control: its
          finished runs; of independent seeds: runs), and how many were declared;
        - ``mean, delta, ci_low, ci_high``: mean of the metric, the mean difference from the control (lower is better)
          and its simultaneous 1 - alpha interval;
        - ``p, p_adj, p_programme``: two-sided p, alone, adjusted for the family and the looks, and for all experiments
          that the control has served (:func:`analysis.stats.estimate.programme_p`);
        - ``verdict, why``: invalid, better, worse, equivalent, undecided, screen, for the control's twin "as
          expected" or differs, and "" for the control; then the reasons, joined by "; ";
        - ``sigma, df``: moderated standard deviation behind the interval, of the difference within a block (of the
          arm's runs, where seeds are independent; of the control, between its seeds), and its degrees of freedom;
        - ``own_sd, correlation``: the same deviation from this arm's runs alone, and the correlation of its losses with
          the control's of the same blocks;
        - ``independent_half``: half width that the interval would have if the same runs had independent seeds (Welch);
        - ``look``: after how many blocks the arm was judged last: decided, or not yet;
        - ``mde``: the smallest true effect that would be called better or worse 4 times in 5;
        - ``tost_low, tost_high``: the interval that has to lie inside the margin (1 - 2 alpha; less alpha at a look);
        - ``worth, worth_low, worth_high``: what the difference is worth in training data, as a fraction of the
          control's tokens (:mod:`analysis.stats.worth`); infinite beyond the budgets that ran, NaN without any;
        - ``params_delta, flops_delta, memory_delta``: cost relative to the control;
        - ``tokens_per_s``: geometric mean of the throughput; ``tokens_per_s_delta, tokens_per_s_low,
          tokens_per_s_high``: its change and the 95 % interval of that (t, on logarithms, within blocks);
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
    variants = [s for s in others if s.arm.role == "variant"]
    results = judge(control, variants, len(variants), design)
    for sample in others:
        if sample.arm.role == "check":
            results |= judge(control, [sample], 1, design)
    scaling = Scaling.of(runs, design)
    rows = [_control_row(control, design)]
    for arm in design.compared[1:]:
        result = results[arm.name]
        row = _row(result.sample, result.control, design)
        if isinstance(result, Judged):
            rows.append(_judged(result, row, scaling, design))
        else:
            rows.append(_not_judged(result, row, design))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"df": float, "look": float, "p_programme": float})


def decided(table: pd.DataFrame, design: Design) -> set[str]:
    """The arms that need no more blocks: of those whose verdict is one, and of a twin that was shown equivalent.

    Args:
        table: the frame of :func:`compare`.
        design: what was declared.
    """
    shown = (table["tost_low"] > -design.margin) & (table["tost_high"] < design.margin)
    known = table["verdict"].isin(_DECIDED) | (table["verdict"].eq("as expected") & shown)
    return set(table.loc[known & table["role"].ne("control"), "arm"])


def _check_declared(runs: pd.DataFrame, design: Design) -> None:
    declared = {(key, arm.name) for arm in design.arms for key in arm.run_keys}
    given = list(zip(runs["run_key"], runs["arm"], strict=True))
    if strangers := set(given) - declared:
        raise ValueError(f"runs that the design does not declare: {sorted(strangers)}")
    if len(given) > len(set(given)):
        raise ValueError("the frame holds a run twice")


# Rows


def _row(sample: Sample, control: Sample, design: Design) -> dict[str, Any]:
    """What is known of an arm whether or not it can be compared."""
    alike = sample.n and control.n and len(control.compiled | sample.compiled) == 1  # one way to compute
    row = {
        "arm": sample.arm.name,
        "role": sample.arm.role,
        "n": sample.n,
        "declared": sample.declared,
        "mean": float(sample.values.mean()) if sample.n else math.nan,
        **{"verdict": "", "why": "", "flags": "", "iso_verdict": ""},
        "params_delta": sample.arm.num_params / control.arm.num_params - 1,
        "flops_delta": sample.arm.flops_per_token / control.arm.flops_per_token - 1,
        "memory_delta": float(sample.memory.mean() / control.memory.mean() - 1) if alike else math.nan,
        "eval_se": sample.eval_se,
        "gates_failed": len(sample.invalid),
    }
    if sample.n:
        row["tokens_per_s"] = math.exp(np.log(sample.speeds).mean())
    speed = _speed(sample, control, design) if alike and sample is not control else (math.nan,) * 3
    names = ("tokens_per_s_delta", "tokens_per_s_low", "tokens_per_s_high")
    return row | dict(zip(names, speed, strict=True))


def _speed(sample: Sample, control: Sample, design: Design) -> tuple[float, float, float]:
    """Change of the throughput and its 95 % interval, where the runs were made side by side; else NaN."""
    if not sample.beside(control):
        return (math.nan,) * 3
    mine, others = np.log(sample.speeds), np.log(control.speeds)
    if not design.independent:
        own, base = (dict(zip(s.blocks, x, strict=True)) for s, x in ((sample, mine), (control, others)))
        shared = sorted(own.keys() & base.keys())
        mine, others = np.array([own[block] for block in shared]), np.array([base[block] for block in shared])
    if min(len(mine), len(others)) < 2:
        change = mine.mean() - others.mean() if len(mine) and len(others) else math.nan
        return math.expm1(change), math.nan, math.nan
    estimate = independent(others, mine, None) if design.independent else within_blocks(mine - others, None)
    half = t_quantile(0.025, estimate.df) * estimate.se
    low, middle, high = (math.expm1(estimate.delta + end) for end in (-half, 0.0, half))
    return middle, low, high


def _control_row(control: Sample, design: Design) -> dict[str, Any]:
    barred = bar(control, control, design)
    own = float(control.values.std(ddof=1)) if control.n > 1 else math.nan
    return _row(control, control, design) | {
        "sigma": own,
        "own_sd": own,
        "df": control.n - 1 if control.n > 1 else math.nan,
        "flags": "; ".join(_outlier_flag(control.seeds, control.values) + _history(control)),
        **(dict(zip(("verdict", "why", "delta"), barred, strict=True)) if barred else {}),
    }


def _declared_otherwise(design: Design) -> list[str]:
    """What is judged by other measures than at an earlier look."""
    changes = [f"{name} {then} then, {now} now" for name, (then, now) in design.changed.items()]
    return [f"changed since the first look: {', '.join(changes)}"] if changes else []


def _outlier_flag(seeds: Sequence[int], values: np.ndarray) -> list[str]:
    far = [seeds[i] for i in outliers(values)]
    return [f"outlier: {seed_list(far)}"] if far else []


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


def _not_judged(result: Barred, row: Mapping[str, Any], design: Design) -> dict[str, Any]:
    """The row of an arm that has no interval."""
    flags = "; ".join(_history(result.sample) + _declared_otherwise(design))
    return {**row, "verdict": result.verdict, "why": result.why, "delta": result.delta, "flags": flags}


def _judged(result: Judged, row: Mapping[str, Any], scaling: Scaling | None, design: Design) -> dict[str, Any]:
    """The row of an arm that was compared."""
    estimate, sample = result.estimate, result.sample
    (low, high), (tost_low, tost_high) = estimate.interval(design.alpha), estimate.equivalence_interval(design.alpha)
    word = word_of(estimate, design)
    verdict, reasons = _expected(sample.arm, word, max(-low, high) < design.margin, design.alpha)
    if word in ("better", "worse") and max(-low, high) < design.margin:
        reasons.append("within margin")
    if verdict == "undecided":
        reasons.append("shows neither a difference nor equivalence")
    if word not in ("better", "worse") and estimate.p_adj < design.alpha:
        reasons.append("Holm's p is below alpha, but the simultaneous interval includes 0")
    judged = {
        **row,
        "n": len(result.blocks.blocks),
        "mean": float(result.values.mean()),
        "delta": estimate.delta,
        "ci_low": low,
        "ci_high": high,
        "p": estimate.p,
        "p_adj": estimate.p_adj,
        "p_programme": programme_p(estimate.p_adj, design.order) if sample.arm.role == "variant" else math.nan,
        "verdict": verdict,
        "sigma": estimate.sigma,
        "df": estimate.df,
        "look": result.look,
        "mde": detectable_effect(estimate.sigma, _layout(result, design)),
        "tost_low": tost_low,
        "tost_high": tost_high,
        **_pairing(result, design),
        **_worth(result, row, word, scaling),
    }
    if sample.arm.role == "variant":
        reasons += _unmatched(judged) if verdict != "undecided" else []
        told = judged["iso_verdict"]
        reasons += [told] if told and not told.startswith(verdict) else []
    if design.looks:
        last = result.next or f"open after the last look, at {result.look} blocks"
        reasons.append(last if word == "undecided" else f"decided after {result.look} blocks")
    reasons += [f"left out: {', '.join(result.blocks.left_out)}"] if result.blocks.left_out else []
    flags = [*_history(sample), *_compiled_otherwise(result.control, sample), *_declared_otherwise(design)]
    if design.independent:
        flags = _outlier_flag(sample.seeds, sample.values) + flags
    else:
        flags = [f"outlier: block {result.blocks.blocks[i]}" for i in outliers(result.values - result.partners)] + flags
    return judged | {"why": "; ".join(reason for reason in reasons if reason), "flags": "; ".join(flags)}


def _layout(result: Judged, design: Design) -> Layout:
    """What was declared for this arm, as far as it bears on what could be seen."""
    family, declared = result.estimate.family, result.sample.declared
    if design.independent:
        return Layout(blocks=(result.control.declared, declared), family=family, alpha=design.alpha, prior=design.prior)
    return Layout(blocks=declared, family=family, alpha=design.alpha, looks=design.looks, prior=design.prior)


def _pairing(result: Judged, design: Design) -> dict[str, float]:
    """What sharing seeds has bought: see the columns ``own_sd``, ``correlation`` and ``independent_half``."""
    estimate = result.estimate
    if design.independent:
        own = float(result.sample.values.std(ddof=1)) if result.sample.n > 1 else math.nan
        return {"own_sd": own, "independent_half": estimate.half(design.alpha)}
    mine, others = result.values, result.partners
    found = {"own_sd": float((mine - others).std(ddof=1))}
    if mine.std() and others.std():
        found["correlation"] = float(np.corrcoef(others, mine)[0, 1])
    # Welch's, with his own degrees of freedom: nothing is called by this interval.
    a, b = others.var(ddof=1) / len(others), mine.var(ddof=1) / len(mine)
    if a + b > 0:
        df = (a + b) ** 2 * (len(mine) - 1) / (a**2 + b**2)
        critical = t_quantile(estimate.share * design.alpha / 2 / estimate.family, df)
        found["independent_half"] = float(critical * math.sqrt(a + b))
    return found


def _worth(result: Judged, row: Mapping[str, Any], word: str, scaling: Scaling | None) -> dict[str, Any]:
    """Worth in data, and the comparison at equal time; without budgets only where loss and speed point one way."""
    found: dict[str, Any] = {}
    values = dict(zip(result.blocks.blocks, result.values, strict=True))
    if scaling:
        worth = scaling.worth(values, result.estimate)
        found |= dict(zip(("worth", "worth_low", "worth_high"), worth, strict=True))
    speed = tuple(1 + row[f"tokens_per_s_{end}"] for end in ("delta", "low", "high"))
    if not all(map(math.isfinite, speed)):
        return found
    timed = scaling.at_equal_time(values, result.estimate, speed) if scaling else None
    if timed is None:
        sure = (word == "better" and speed[1] >= 1) or (word == "worse" and speed[2] <= 1)
        return found | ({"iso_verdict": f"{word} per second"} if sure else {})
    delta, low, high = timed
    told = "worse" if low > 0 else "better" if high < 0 else "undecided"
    return found | {"iso_delta": delta, "iso_low": low, "iso_high": high, "iso_verdict": f"{told} per second"}


def _expected(arm: Arm, word: str, within: bool, alpha: float) -> tuple[str, list[str]]:
    """The verdict and how it stands to what was expected of the arm; ``word`` itself for all but one kind of arm."""
    differs = word in ("better", "worse")
    if arm.role == "check" and arm.expect == "same":  # the twin
        if differs:
            return "differs", [f"chance, in at most 1 of {1 / alpha:.0f} honest rows"]
        return "as expected", [] if word == "equivalent" else ["not shown equivalent"]
    if arm.role == "check" and arm.expect == "worse":
        return word, [
            {
                "worse": "known-bad control, as expected",
                "better": "known-bad control found better: do not trust this experiment before you know why",
                "equivalent": "known-bad control makes no difference here: such runs cannot tell good from bad",
            }.get(word, "known-bad control not seen: these runs are too few, or too short, to tell bad from good")
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
