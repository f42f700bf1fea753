"""How often the verdicts are right: on simulated experiments, and on real runs dealt into experiments.

The simulation draws final losses, not training runs: what it tests is the statistics. Its cases with equal noise show
whether false alarms, coverage and power are what they are said to be; the others break an assumption on purpose and
compare pooling alone (Dunnett's test, nothing checked) with the whole procedure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stats import dunnett
from analysis.stats.compare import compare
from analysis.stats.estimate import Noise, bonferroni, family, paired
from analysis.stats.power import call_chance, detectable_effect, detectable_effect_paired, sigma_interval
from analysis.store.load import FINAL_METRICS, RUN_COLUMNS
from analysis.store.schema import Arm, Design

ALPHA = 0.05
TRIALS = 2000
RATES = ("alarms", "coverage", "power", "naive_alarms")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of experiment to simulate, in units of the control's seed sd."""

    name: str
    n_control: int
    sizes: tuple[int, ...]  # runs of each variant
    scales: tuple[float, ...] = ()  # sd of each variant; () is 1 throughout
    correlation: float = 0.0  # of a variant's run with the control's of the same number
    shared_seeds: bool = False
    paired: bool = False  # analysed in pairs
    drift: float = 0.0  # shift between a first and a second batch of runs
    order: str = "interleaved"  # of the batches: or "control first"
    noticed: str = ""  # what tells the batches apart: "stratum" or "time"; "" is nothing

    @property
    def by_table(self) -> bool:
        """Whether what guards here looks at runs rather than at their losses."""
        return bool(self.noticed) or (self.shared_seeds and not self.paired)

    @property
    def kind(self) -> str:
        """The layout in words."""
        same = len(set(self.sizes)) == 1
        runs = (
            f"{len(self.sizes)} x {self.sizes[0]}" if same and len(self.sizes) > 1 else "/".join(map(str, self.sizes))
        )
        return f"{self.n_control} + {runs}"


def honest_cases() -> list[Case]:
    """Equal noise: every number of seeds from 1 to 8, families of 1, 3 and 6, unequal numbers, and pairs."""
    equal: list[tuple[int, tuple[int, ...]]] = [(8, (n,) * 6) for n in range(1, 9)]
    equal += [(8, (3,)), (8, (3, 3, 3)), (4, (3, 3, 3)), (8, (1, 2, 3, 4, 6, 8)), (6, (8, 5, 5, 3, 2, 1))]
    cases = [Case(name="equal noise", n_control=n_control, sizes=sizes) for n_control, sizes in equal]
    pairs: dict[str, Any] = {"shared_seeds": True, "paired": True, "correlation": 0.5}
    return cases + [Case(name="paired, seeds correlated +0.5", n_control=8, sizes=(n,) * 6, **pairs) for n in (5, 8)]


def broken_cases() -> list[Case]:
    """An assumption broken on purpose."""
    scaled: list[tuple[str, tuple[int, ...], tuple[float, ...]]] = []
    for size in (1, 3, 6):
        scaled += [(f"variants' sd x{k:g}", (3,) * size, (k,) * size) for k in (1.5, 2, 3)]
    scaled += [(f"variants' sd x{k:g}", (2,), (k,)) for k in (2, 3)]
    scaled += [(f"one variant's sd x{k:g}", (3,) * 6, (k, *[1.0] * 5)) for k in (1.5, 2, 3)]
    scaled += [("variants' sd x0.5", (n,) * size, (0.5,) * size) for n, size in ((3, 6), (8, 6), (8, 12))]
    cases = [Case(name=name, n_control=8, sizes=sizes, scales=scales) for name, sizes, scales in scaled]
    for r in (-0.5, 0.5):
        name = f"seeds shared, correlation {r:+g}"
        cases.append(Case(name=name, n_control=8, sizes=(5,) * 6, correlation=r, shared_seeds=True))
        cases.append(replace(cases[-1], name=f"the same, declared paired ({r:+g})", paired=True))
    drifting = Case(name="drift of 1 sd half way, runs interleaved", n_control=8, sizes=(3,) * 6, drift=1)
    first = replace(drifting, order="control first")
    cases += [drifting]
    cases += [replace(first, name="drift of 1 sd, control first; machine or code changed", noticed="stratum")]
    cases += [replace(first, name="drift of 1 sd, control first; a day between", noticed="time")]
    return cases


def simulate(case: Case, noise: np.ndarray | None = None, trials: int = TRIALS, seed: int = 0) -> dict[str, float]:
    """Rates over simulated experiments of one kind.

    Args:
        case: the kind.
        noise: residuals to draw from, with replacement (they are centred and scaled to sd 1); None draws normals.
        trials: how many experiments.
        seed: of the generator.

    Returns:
        Fractions of the trials: ``alarms`` (families in which any variant that differs in nothing was called better or
        worse), ``coverage`` (families whose intervals all hold 0, of those that gave intervals), ``power`` (the first
        variant found better or worse by its sign, once the effect is added that is predicted to be found with chance
        0.8), and ``naive_alarms`` (pooling alone). Coverage and power are NaN where a guard gives no interval at all.
    """
    generator = np.random.default_rng(seed)
    judge = _by_table(case) if case.by_table else _by_numbers(case)
    effect = _predicted_effect(case)
    counts = dict.fromkeys(RATES, 0)
    with_intervals = 0
    for _ in range(trials):
        control, arms = _draw(case, generator, noise)
        intervals = judge(control, arms)
        counts["naive_alarms"] += _naive(control, arms)
        called = [low > 0 or high < 0 for low, high in intervals]
        counts["alarms"] += any(called)
        if intervals:
            with_intervals += 1
            counts["coverage"] += not any(called)
            # A shift moves the interval and nothing else.
            counts["power"] += intervals[0][0] + effect > 0
    rates = {name: count / trials for name, count in counts.items()}
    if not with_intervals:
        rates |= {"coverage": math.nan, "power": math.nan}
    return rates


def simulation(
    cases: Iterable[Case], noise: np.ndarray | None = None, trials: int = TRIALS
) -> Iterator[dict[str, Any]]:
    """A record for each case as it is done: case, design, noise, trials and the rates of :func:`simulate`."""
    cases = list(cases)
    # What is judged by tables is slow, and each trial gives the same answer.
    counts = [min(trials, TRIALS) if case.by_table else trials for case in cases]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for case, n, rates in zip(cases, counts, pool.map(simulate, cases, repeat(noise), counts), strict=True):
            kind = {"case": case.name, "design": case.kind, "noise": "normal" if noise is None else "real", "trials": n}
            yield kind | rates


def _draw(case: Case, generator: np.random.Generator, noise: np.ndarray | None) -> tuple[np.ndarray, list[np.ndarray]]:
    def draw(n: int) -> np.ndarray:
        if noise is None:
            return generator.normal(size=n)
        return (generator.choice(noise, n) - noise.mean()) / noise.std()

    control = draw(case.n_control)
    arms = []
    for n, scale in zip(case.sizes, case.scales or [1.0] * len(case.sizes), strict=True):
        fresh = draw(n)
        if case.correlation:
            mixed = case.correlation * control[:n] + math.sqrt(1 - case.correlation**2) * fresh
            fresh = mixed
        arms.append(scale * fresh)
    if case.drift and case.order == "control first":
        arms = [x + case.drift for x in arms]
    elif case.drift:  # as a plan orders its runs: each arm spread evenly over the sequence
        control, *arms = [x + case.drift * ((np.arange(len(x)) + 0.5) / len(x) > 0.5) for x in (control, *arms)]
    return control, arms


def _predicted_effect(case: Case) -> float:
    if case.paired:
        return detectable_effect_paired(1.0, case.sizes[0], len(case.sizes), correlation=case.correlation, alpha=ALPHA)
    return detectable_effect(1.0, case.n_control, case.sizes, alpha=ALPHA)


Judge = Callable[[np.ndarray, Sequence[np.ndarray]], list[tuple[float, float]]]


def _by_numbers(case: Case) -> Judge:
    """The simultaneous intervals as `compare` has them, without its tables."""

    def judge(control: np.ndarray, arms: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        named = {str(i): x for i, x in enumerate(arms)}
        if case.paired:
            estimates = {name: paired(control[: len(x)], x) for name, x in named.items()}
            estimates = bonferroni(estimates, len(arms), ALPHA)
        else:
            noise = Noise.of({"control": control} | named)
            estimates = family(control, named, case.sizes, noise, ALPHA)
        return [estimates[name].interval(ALPHA) for name in named]

    return judge


def _by_table(case: Case) -> Judge:
    """The intervals of the verdict table; none where it gives none."""
    arms = tuple(_arm(f"v{i}", "variant", n) for i, n in enumerate(case.sizes))
    plan = design((_arm("control", "control", case.n_control), *arms), paired=case.paired)

    def judge(control: np.ndarray, values: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        frame = table_of(plan, [control, *values])
        is_control = frame["arm"] == "control"
        if case.shared_seeds:
            frame["seed"] = frame.groupby("arm").cumcount()
        if case.noticed == "stratum":
            frame["stratum"] = np.where(is_control, "device=cpu code=1", "device=cpu code=2")
        if case.noticed == "time":
            frame["reproducible"] = False
            for column in ("started", "ended"):
                frame[column] += pd.to_timedelta(np.where(is_control, 0, 24), unit="h")
        rows = compare(frame, plan)
        told = rows[(rows["role"] == "variant") & rows["ci_low"].notna()]
        return list(zip(told["ci_low"], told["ci_high"], strict=True))

    return judge


def _naive(control: np.ndarray, arms: Sequence[np.ndarray]) -> bool:
    """Whether pooling alone calls any arm different."""
    groups = [control, *arms]
    df = sum(len(x) - 1 for x in groups)
    sigma = math.sqrt(sum(float(((x - x.mean()) ** 2).sum()) for x in groups) / df)
    critical = dunnett.critical_value(ALPHA, len(control), [len(x) for x in arms], df)
    return any(
        abs(x.mean() - control.mean()) > critical * sigma * math.sqrt(1 / len(x) + 1 / len(control)) for x in arms
    )


# Frames as the store would give them


def _arm(name: str, role: str, n: int) -> Arm:
    return Arm(name=name, role=role, run_keys=tuple(f"{name}-{i}" for i in range(n)), num_params=1, flops_per_token=1)  # type: ignore[arg-type]


def design(arms: Sequence[Arm], **fields: object) -> Design:
    """A design over made-up runs."""
    head = {"name": "calibration", "question": "", "base": "none", "metric": "final/val_loss", "alpha": ALPHA}
    return Design(**(head | {"margin": 1e-9, "tokens_per_run": 1} | fields), arms=tuple(arms))  # type: ignore[arg-type]


def table_of(plan: Design, values: Sequence[np.ndarray]) -> pd.DataFrame:
    """Finished, valid runs of one stratum with the given final losses, arm for arm."""
    rows = [
        (arm.run_keys[i], arm.name, arm.role, loss)
        for arm, losses in zip(plan.arms, values, strict=True)
        for i, loss in enumerate(losses)
    ]
    frame = pd.DataFrame(rows, columns=["run_key", "arm", "role", plan.metric])
    began = pd.Timestamp("2026-01-01", tz="UTC")
    fixed = {
        "mlflow_run_id": "",
        "status": "FINISHED",
        "stratum": "device=cpu code=1",
        "data": "1",
        "reproducible": True,
    }
    frame = frame.assign(started=began, ended=began, invalid=None, reason=None, finished=1, seed=range(len(frame)))
    for key, value in fixed.items():
        frame[key] = np.full(len(frame), value)
    for key in FINAL_METRICS:
        if key not in frame:
            frame[key] = 1.0
    return frame[[*RUN_COLUMNS, *FINAL_METRICS]]


# Real runs


def shape(values: Sequence[np.ndarray]) -> dict[str, float]:
    """Spread and shape of the noise between runs of one recipe, over groups of such runs.

    Returns:
        ``n``; ``sigma`` with its 95 % interval (chi-square) and ``df``; skewness and excess kurtosis of the residuals
        with the standard errors that normal noise would have; Shapiro and Wilk's p for normality.
    """
    residuals = np.concatenate([(x - x.mean()) * math.sqrt(len(x) / (len(x) - 1)) for x in values])
    df = sum(len(x) - 1 for x in values)
    sigma = math.sqrt(sum(float(((x - x.mean()) ** 2).sum()) for x in values) / df)
    low, high = sigma_interval(sigma, df)
    n = len(residuals)
    return {
        **{"n": n, "df": df, "sigma": sigma, "sigma_low": low, "sigma_high": high},
        "skewness": float(stats.skew(residuals)),
        "skewness_se": math.sqrt(6 / n),
        "kurtosis": float(stats.kurtosis(residuals)),
        "kurtosis_se": math.sqrt(24 / n),
        "shapiro_p": float(stats.shapiro(residuals).pvalue),
    }


def deal(control: np.ndarray, arm: np.ndarray, n_control: int, n: int) -> dict[str, float]:
    """Real runs dealt into experiments of ``n_control`` + ``n`` that share no run, each judged by itself.

    Returns:
        ``experiments``; ``called``, how many said better or worse, and ``worse`` of these; ``low`` and ``high``, the
        exact 95 % interval of the chance of either; ``predicted``, that chance from the power module for the
        difference and the spread that all runs together have.
    """
    count = min(len(control) // n_control, len(arm) // n)
    plan = design([_arm("control", "control", n_control), _arm("variant", "variant", n)])
    words = []
    for i in range(count):
        dealt = [control[i * n_control : (i + 1) * n_control], arm[i * n : (i + 1) * n]]
        words.append(compare(table_of(plan, dealt), plan)["verdict"].iloc[1])
    called = sum(word in ("better", "worse") for word in words)
    interval = stats.binomtest(called, count).proportion_ci(0.95, "exact")
    pooled = Noise.of({"control": control, "arm": arm}).sigma
    effect = abs(float(arm.mean() - control.mean()))
    return {
        **{"experiments": count, "called": called, "worse": words.count("worse")},
        **{"low": float(interval.low), "high": float(interval.high)},
        "predicted": call_chance(effect, pooled, n_control, [n], alpha=ALPHA),
    }
