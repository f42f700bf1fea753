"""How often the verdicts are right: on simulated experiments, with normal noise and with that of real runs.

The simulation draws final losses, not training runs: what it tests is the statistics. It takes the verdicts' own steps
for thousands of experiments at a time (the tests compare the two), first where all assumptions hold, then where one is
broken on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from analysis.stats.estimate import fit_prior, moderate, programme_p, shares, t_quantile
from analysis.stats.power import Layout, detectable_effect
from analysis.store.schema import Prior

ALPHA = 0.05
TRIALS = 20_000
EARLIER = (8, 12)  # arms and blocks of the experiments that a learned prior comes from
MEASURED = (0.98, 0.92, 0.83, 0.82, 0.68, 0.70)  # seed correlations of `tiny`'s variants: see experiments/LOG.md
TYPICAL = Prior(sd=0.57, df=4.5, source="tiny's, in units of its seed sd")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of experiment, in units of the sd between the control's seeds."""

    name: str
    blocks: int
    correlations: tuple[float, ...] = ()  # seed correlation of each arm with the control; () draws its sd from a prior
    family: int = 3  # arms, where their sds are drawn
    scale: float = 1.0  # of the first arm's differences: it is noisier than its correlation says
    prior: str = "true"  # "true", "learned" from other arms, "half" of the true sd, or "none"
    looks: tuple[int, ...] = ()
    missing: float = 0.0  # chance that a run breaks
    independent: int = 0  # runs of each arm with seeds of its own, beside the control's `blocks`; 0 is blocks

    @property
    def arms(self) -> int:
        """Variants."""
        return len(self.correlations) or self.family

    @property
    def kind(self) -> str:
        """The layout in words."""
        if self.independent:
            return f"{self.blocks} + {self.arms} x {self.independent}"
        return f"{self.arms} x {','.join(map(str, self.looks)) or self.blocks}"


def honest_cases() -> list[Case]:
    """All assumptions hold, or as nearly as a learned prior lets them."""
    cases = [
        Case(name="sds as the prior says", blocks=blocks, family=family)
        for blocks, family in ((3, 1), (3, 3), (3, 6), (5, 1), (5, 3), (5, 6), (8, 3))
    ]
    cases += [
        Case(name=f"correlation {r:g}", blocks=5, correlations=(r,) * 3, prior="learned") for r in (0.0, 0.5, 0.9, 0.98)
    ]
    cases += [Case(name="tiny's correlations", blocks=n, correlations=MEASURED, prior="learned") for n in (3, 5, 8)]
    cases += [Case(name="no prior", blocks=n, correlations=MEASURED[2:5], prior="none") for n in (3, 5, 8)]
    cases += [Case(name="one run in ten broken", blocks=5, missing=0.1)]
    cases += [Case(name="looks", blocks=8, looks=(3, 5, 8), family=k) for k in (1, 3)]
    cases += [Case(name="looks, no prior", blocks=8, looks=(3, 5, 8), correlations=MEASURED[2:5], prior="none")]
    return cases + [Case(name="independent seeds", blocks=8, independent=n, correlations=(0.0,) * 3) for n in (3, 5)]


def broken_cases() -> list[Case]:
    """An assumption broken on purpose."""
    one = Case(name="one arm noisier than any before", blocks=5, correlations=MEASURED[2:5])
    cases = [
        replace(one, name=f"an arm's sd {k:g} times what its prior knows", blocks=n, correlations=(0.83,), scale=k)
        for k in (2, 3)
        for n in (3, 5, 8)
    ]
    return cases + [replace(one, name="a prior of half the sd", prior="half", blocks=n) for n in (3, 5, 8)]


def simulate(
    case: Case, noise: np.ndarray | None = None, trials: int = TRIALS, seed: int = 0, *, prior: Prior | None = None
) -> dict[str, float]:
    """Rates over simulated experiments of one kind in which no arm differs.

    Args:
        case: the kind; its number of arms, their sds and its prior give way to those of ``noise`` and ``prior``.
        noise: centred differences of real arms from their control, block by block, (arms, blocks). Experiments draw
            whole blocks, with replacement and a random sign.
        trials: how many experiments.
        seed: of the generator.
        prior: of real noise; from other arms than it holds.

    Returns:
        Fractions of the trials: ``alarms`` (families in which any arm was called better or worse), ``coverage`` (of the
        first arm's own 95 % interval over all blocks, for it alone), ``power`` (the first arm, at the typical sd where
        sds are drawn, found once the effect is added that is predicted to be found with chance 0.8).
    """
    generator = np.random.default_rng(seed)
    sds = _sds(case, trials, generator)
    if noise is not None:
        sds = np.broadcast_to(noise.std(axis=1, ddof=1), (trials, len(noise)))
        known: Prior | None = prior
    else:
        known = _prior(case, trials, generator)
    draws = _draw(case, sds, generator, noise)
    called, single = _call(draws, case, known)
    # For power the first arm has one sd, about which a prediction can be made.
    typical = float(sds[0, 0]) if case.correlations or noise is not None else TYPICAL.sd
    fixed = np.concatenate([np.full((trials, 1), typical), sds[:, 1:]], axis=1)
    found = _call(_draw(case, fixed, generator, noise), case, known, effect=_predicted(case, typical, known, fixed))[0]
    return {
        "alarms": float((called != 0).any(axis=1).mean()),
        "coverage": float(single.mean()),
        "power": float((found[:, 0] > 0).mean()),
    }


def simulation(cases: Iterable[Case], trials: int = TRIALS) -> Iterator[dict[str, Any]]:
    """A record for each case as it is done, with normal noise: case, design, trials and the rates of `simulate`."""
    for case in cases:
        kind = {"case": case.name, "design": case.kind, "noise": "normal", "trials": trials}
        yield kind | simulate(case, None, trials)


def resampled(differences: pd.DataFrame, trials: int = TRIALS) -> Iterator[dict[str, Any]]:
    """The same with the noise of real arms; each family's prior is learned from the arms that are not in it.

    Args:
        differences: from the control, a row a block and a column an arm.
        trials: experiments a case.
    """
    centred = (differences - differences.mean()).to_numpy().T  # arms, blocks
    generator = np.random.default_rng(1)
    for family, case in (
        *((k, Case(name="real differences", blocks=n)) for k in (1, 3, 5) for n in (3, 5, 8)),
        *((k, Case(name="real differences, looks", blocks=8, looks=(3, 5, 8))) for k in (1, 3)),
    ):
        if len(centred) < family + 3:
            continue
        rates = []
        groups = 20
        for group in range(groups):
            order = generator.permutation(len(centred))
            mine, rest = centred[order[:family]], centred[order[family:]]
            df = np.full(len(rest), rest.shape[1] - 1)
            prior = fit_prior(rest.var(axis=1, ddof=1), df, "other arms")
            rates.append(simulate(replace(case, family=family), mine, max(1, trials // groups), group, prior=prior))
        kind = {"case": case.name, "design": replace(case, family=family).kind, "noise": "real", "trials": trials}
        yield kind | {name: float(np.mean([rate[name] for rate in rates])) for name in rates[0]}


def streams(experiments: int = 100, arms: int = 3, blocks: int = 5, trials: int = 2000) -> dict[str, float]:
    """Programmes of experiments without an effect that all use the same runs of one control.

    Returns:
        Fractions of the programmes in which any experiment called an arm better or worse: ``alone`` by its own adjusted
        p, ``programme`` by that of the programme; and ``fresh``, by its own with fresh control runs each time.
    """
    generator = np.random.default_rng(0)
    counts = {"alone": 0, "programme": 0, "fresh": 0}
    orders = np.arange(1, experiments + 1)
    for _ in range(trials):
        correlations = generator.choice(MEASURED, (experiments, arms, 1))
        own = generator.standard_normal((experiments, arms, blocks))
        for name, shared in (("alone", (1, 1, blocks)), ("fresh", (experiments, 1, blocks))):
            control = generator.standard_normal(shared)
            d = (correlations - 1) * control + np.sqrt(1 - correlations**2) * own
            variance, df = moderate(d.var(axis=-1, ddof=1), blocks - 1, TYPICAL)
            p = 2 * special.stdtr(df, -np.abs(d.mean(axis=-1)) / np.sqrt(variance / blocks))
            adjusted = np.minimum(1, arms * p.min(axis=1))
            counts[name] += bool((adjusted < ALPHA).any())
            if name == "alone":
                whole = [programme_p(float(one), int(m)) for one, m in zip(adjusted, orders, strict=True)]
                counts["programme"] += min(whole) < ALPHA
    return {name: count / trials for name, count in counts.items()}


def _sds(case: Case, trials: int, generator: np.random.Generator) -> np.ndarray:
    """True sd of each arm's differences, (trials, arms)."""
    if not case.correlations:
        chi = generator.chisquare(TYPICAL.df, (trials, case.family))
        return np.asarray(np.minimum(TYPICAL.sd * np.sqrt(TYPICAL.df / chi), 1.95))
    sds = np.sqrt(2 * (1 - np.array(case.correlations)))
    return np.asarray(np.broadcast_to(sds, (trials, case.arms)))


def _prior(case: Case, trials: int, generator: np.random.Generator) -> Prior | None:
    """What is known beforehand; of a learned one another for each trial, (trials, 1)."""
    if case.prior == "none":
        return None
    if case.independent:
        return Prior(sd=1.0, df=20.0, source="")
    if not case.correlations:
        return TYPICAL
    sds = np.sqrt(2 * (1 - np.array(case.correlations)))
    if case.prior == "learned":
        arms, blocks = EARLIER
        true = np.resize(sds, arms)
        variances = true**2 * generator.chisquare(blocks - 1, (trials, arms)) / (blocks - 1)
        fits = [fit_prior(row, np.full(arms, blocks - 1), "") for row in variances]
        sd, df = np.array([(fit.sd, fit.df) for fit in fits]).T[..., None]
        return Prior(sd=sd, df=df, source="")
    known = math.exp(np.log(sds).mean())
    return Prior(sd=known / 2 if case.prior == "half" else known, df=TYPICAL.df, source="")


def _draw(case: Case, sds: np.ndarray, generator: np.random.Generator, noise: np.ndarray | None) -> np.ndarray:
    """Differences from the control, (trials, arms, blocks), NaN where a run broke; independent: both sides' runs."""
    trials, arms = sds.shape
    if case.independent:
        control = generator.standard_normal((trials, 1, case.blocks))
        own = generator.standard_normal((trials, arms, case.independent))
        return np.concatenate([np.broadcast_to(control, (trials, arms, case.blocks)), own], axis=2)
    if noise is not None:
        chosen = generator.integers(noise.shape[1], size=(trials, case.blocks))
        signs = generator.choice([-1.0, 1.0], size=(trials, 1, case.blocks))
        draws = noise[:, chosen].transpose(1, 0, 2) * signs * math.sqrt(noise.shape[1] / (noise.shape[1] - 1))
    else:
        correlations = (1 - sds**2 / 2)[..., None]
        control = generator.standard_normal((trials, 1, case.blocks))
        own = generator.standard_normal((trials, arms, case.blocks))
        draws = (correlations - 1) * control + np.sqrt(1 - correlations**2) * own
        draws[:, 0] *= case.scale
    if case.missing:
        broken = generator.random((trials, arms + 1, case.blocks)) < case.missing
        draws = np.where(broken[:, :1] | broken[:, 1:], np.nan, draws)
    return draws


def _call(draws: np.ndarray, case: Case, prior: Prior | None, effect: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What each arm is called (1 worse, -1 better, 0 neither), (trials, arms); whether the first's own interval holds.

    ``effect`` is added to the first arm's differences.
    """
    arms, added = draws.shape[1], np.zeros((1, draws.shape[1]))
    added[0, 0] = 1.0
    called = np.zeros(draws.shape[:2], int)
    single = np.zeros(len(draws), bool)
    looks = case.looks or (case.blocks,)
    for n, share in zip(looks, shares(looks), strict=True):
        if case.independent:
            mean, se, df = _independent(draws, case, prior)
        else:
            seen = draws[..., :n]
            count = np.isfinite(seen).sum(axis=2)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.nansum(seen, axis=2) / count
                own = np.nansum((seen - mean[..., None]) ** 2, axis=2) / (count - 1)
            variance, df = moderate(own, count - 1, prior)
            se = np.where(count < 2, np.inf, np.sqrt(variance / np.maximum(count, 1)))
        half = t_quantile(share * ALPHA / 2 / arms, df) * se
        moved = np.nan_to_num(mean) + effect * added
        now = np.where(moved > half, 1, np.where(moved < -half, -1, 0))
        called = np.where(called == 0, now, called)
        single = (np.abs(np.nan_to_num(mean)) <= t_quantile(ALPHA / 2, df) * se)[:, 0]
    return called, single


def _independent(draws: np.ndarray, case: Case, prior: Prior | None) -> tuple[np.ndarray, np.ndarray, Any]:
    control, own = draws[..., : case.blocks], draws[..., case.blocks :]
    sides = [moderate(x.var(axis=2, ddof=1), x.shape[2] - 1, prior) for x in (control, own)]
    (v0, df0), (v1, df1) = sides
    se = np.sqrt(v0 / control.shape[2] + v1 / own.shape[2])
    return own.mean(axis=2) - control.mean(axis=2), se, np.minimum(df0, df1)


def _predicted(case: Case, sd: float, prior: Prior | None, sds: np.ndarray) -> float:
    """The effect that the power module says is found with chance 0.8, of an arm with this sd."""
    known = prior
    if prior is not None and np.ndim(prior.sd):  # learned anew for each trial: of the middle one
        known = Prior(sd=float(np.median(prior.sd)), df=float(np.median(prior.df)), source="")
    blocks = (case.blocks, case.independent) if case.independent else case.blocks
    layout = Layout(blocks=blocks, family=sds.shape[1], alpha=ALPHA, looks=case.looks, prior=known)
    return detectable_effect(1.0 if case.independent else sd * case.scale, layout)


# Real runs


def within_blocks_of(runs: pd.DataFrame, metric: str, control: str = "control") -> pd.DataFrame:
    """Differences from the control, a row a seed and a column an arm, of the seeds that all arms have.

    Args:
        runs: columns arm, seed and ``metric``.
        metric: of the runs.
        control: name of the control's arm.
    """
    wide = runs.pivot_table(index="seed", columns="arm", values=metric).dropna()
    return wide.drop(columns=control).sub(wide[control], axis=0)


def scatter(runs: pd.DataFrame, metric: str, control: str = "control") -> dict[str, dict[str, float]]:
    """How each arm's runs scatter beside the control's of the same seeds; arguments as `within_blocks_of` has.

    Returns:
        By arm: ``n`` blocks, ``delta``, ``sd`` of the difference within a block and ``unpaired``, of one between
        independent seeds, ``correlation``, and Shapiro and Wilk's p of normality ``shapiro_p``.
    """
    wide = runs.pivot_table(index="seed", columns="arm", values=metric).dropna()
    found = {}
    for arm in wide.columns.drop(control):
        difference = wide[arm] - wide[control]
        found[str(arm)] = {
            "n": len(wide),
            "delta": float(difference.mean()),
            "sd": float(difference.std()),
            "unpaired": math.sqrt(float(wide[arm].var() + wide[control].var())),
            "correlation": float(np.corrcoef(wide[arm], wide[control])[0, 1]),
            "shapiro_p": float(stats.shapiro(difference).pvalue),
        }
    return found


def prior_of(found: Mapping[str, Mapping[str, float]], source: str) -> Prior:
    """The prior that arms with the scatter of :func:`scatter` give, the twin left out."""
    return fit_prior([one["sd"] ** 2 for one in found.values()], [one["n"] - 1 for one in found.values()], source)
