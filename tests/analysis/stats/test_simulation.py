"""The verdicts' error rates, by simulating the shipped procedure; then on real runs, and with assumptions broken."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.stats import simulation as calibration
from analysis.stats.compare import compare
from analysis.stats.estimate import Noise, family
from analysis.stats.simulation import Case, broken_cases, deal, design, honest_cases, shape, simulate, table_of
from tests.conftest import ROOT

RESULTS = ROOT / "experiments/results/calibration-tiny.csv"


def real_runs() -> dict[str, np.ndarray]:
    """Final losses of the shipped calibration runs, by arm in the order of their seeds."""
    runs = pd.read_csv(RESULTS)
    return {str(arm): group["final/val_loss"].to_numpy() for arm, group in runs.groupby("arm", sort=False)}


def residuals() -> np.ndarray:
    runs = real_runs()
    return np.concatenate([runs[arm] - runs[arm].mean() for arm in ("control", "again")])


def within(rate: float, trials: int, low: float, high: float) -> bool:
    """Whether the rate's exact 99.9 % interval meets [low, high]."""
    interval = stats.binomtest(round(rate * trials), trials).proportion_ci(0.999, "exact")
    return bool(interval.high >= low and interval.low <= high)


def name(case: Case) -> str:
    return f"{case.name}, {case.kind}"


def check_honest(case: Case, noise: np.ndarray | None, trials: int) -> None:
    rates = simulate(case, noise, trials)
    assert within(rates["alarms"], trials, 0.03, 0.07), rates
    assert within(rates["coverage"], trials, 0.93, 0.97), rates
    assert within(rates["power"], trials, 0.75, 0.85), rates


@pytest.mark.parametrize("case", [honest_cases()[2], honest_cases()[8], honest_cases()[-2]], ids=name)
def test_honest_experiments_quickly(case):
    check_honest(case, None, 600)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "real"])
@pytest.mark.parametrize("case", honest_cases(), ids=name)
def test_honest_experiments(case, noise):
    check_honest(case, residuals() if noise == "real" else None, 2000)


LIMIT = [case for case in broken_cases() if case.sizes == (2,)]


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "real"])
@pytest.mark.parametrize("case", [case for case in broken_cases() if case not in LIMIT], ids=name)
def test_the_guards_hold_where_an_assumption_is_broken(case, noise):
    trials = 40 if case.by_table else 2000  # slower, and each gives the same answer
    rates = simulate(case, residuals() if noise == "real" else None, trials)
    assert within(rates["alarms"], trials, 0, 0.08), rates


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "real"])
@pytest.mark.parametrize(("case", "alarms"), zip(LIMIT, (0.10, 0.14), strict=True))
def test_the_known_limit_is_as_bad_as_it_is_said_to_be(case, alarms, noise):
    """A noisy variant of two seeds: README prints these rates in bold."""
    rates = simulate(case, residuals() if noise == "real" else None, 2000)
    assert within(rates["alarms"], 2000, alarms, alarms), rates
    assert rates["alarms"] < 0.6 * rates["naive_alarms"]


def test_pooling_alone_fails_as_published():
    """8 + 3 seeds, the variants' sd doubled and tripled: 15 % and 22 % false alarms."""
    for scale, published in ((2, 0.15), (3, 0.22)):
        rates = simulate(Case(name="", n_control=8, sizes=(3,), scales=(scale,)), None, 2000)
        assert rates["naive_alarms"] == pytest.approx(published, abs=0.02)
        assert within(rates["alarms"], 2000, 0, 0.08)


def test_without_the_arms_own_scatter_the_guard_is_gone(monkeypatch):
    monkeypatch.setattr("analysis.stats.estimate.OWN_LEVEL", 19.9)  # Welch's test at a level of nearly 1
    assert not within(
        simulate(Case(name="", n_control=8, sizes=(3,), scales=(3,)), None, 2000)["alarms"], 2000, 0, 0.08
    )


def test_what_is_noticed_is_not_called():
    for case in broken_cases():
        if case.by_table:
            assert simulate(case, None, 20)["alarms"] == 0


def test_the_simulation_judges_as_the_table_does():
    case = Case(name="", n_control=4, sizes=(3, 2, 1), scales=(1, 3, 1))
    plan = design(
        [
            calibration._arm("control", "control", 4),
            *(calibration._arm(f"v{i}", "variant", n) for i, n in enumerate(case.sizes)),
        ]
    )
    generator = np.random.default_rng(0)
    by_numbers = calibration._by_numbers(case)
    for _ in range(40):
        control, arms = calibration._draw(case, generator, None)
        table = compare(table_of(plan, [control, *arms]), plan).iloc[1:]
        assert table[["ci_low", "ci_high"]].to_numpy() == pytest.approx(np.array(by_numbers(control, arms)))


def test_noise_is_drawn_with_its_own_shape_and_unit_spread():
    skewed = np.array([0.0] * 9 + [10.0])
    control, _ = calibration._draw(Case(name="", n_control=4000, sizes=(1,)), np.random.default_rng(0), skewed)
    assert (control.mean(), control.std()) == pytest.approx((0, 1), abs=0.05)
    assert stats.skew(control) == pytest.approx(stats.skew(skewed), rel=0.1)


def test_correlated_seeds_are_correlated_as_told():
    case = Case(name="", n_control=4000, sizes=(4000,), correlation=-0.5, shared_seeds=True)
    control, (arm,) = calibration._draw(case, np.random.default_rng(0), None)
    assert np.corrcoef(control, arm)[0, 1] == pytest.approx(-0.5, abs=0.05)
    assert arm.std() == pytest.approx(1, abs=0.05)


def test_shape_of_known_noise():
    generator = np.random.default_rng(0)
    found = shape([generator.normal(5, 2, 400), generator.normal(9, 2, 400)])
    assert found["df"] == 798
    assert found["sigma_low"] < 2 < found["sigma_high"]
    assert abs(found["skewness"]) < 3 * found["skewness_se"]
    assert found["shapiro_p"] > 0.01
    assert shape([generator.exponential(size=200)])["shapiro_p"] < 1e-6


def test_dealing_uses_each_run_once_and_counts_exactly():
    generator = np.random.default_rng(0)
    control, bad = generator.normal(0, 1, 41), generator.normal(20, 1, 25)
    found = deal(control, bad, 5, 3)
    assert (found["experiments"], found["called"], found["worse"]) == (8, 8, 8)
    assert (found["low"], found["high"]) == pytest.approx((0.025 ** (1 / 8), 1.0))  # Clopper and Pearson, 8 of 8
    assert found["predicted"] == pytest.approx(1.0)
    same = deal(control, generator.normal(0, 1, 24), 5, 3)
    assert same["predicted"] < 0.1
    assert same["called"] <= 2


@pytest.mark.parametrize(("scale", "most"), [(1.0, 0.05), (0.5, 0.05), (2.0, 0.08), (3.0, 0.08)])
def test_an_arm_at_the_margin_is_seldom_called_equivalent(scale, most):
    """The margin is no small number of standard errors, or nothing would ever be called so."""
    generator, margin, called = np.random.default_rng(0), 4.0, 0
    for _ in range(2000):
        control, arms = generator.normal(size=8), {"a": margin + scale * generator.normal(size=3)}
        estimates = family(control, arms, [3], Noise.of({"control": control} | arms), 0.05)
        low, high = estimates["a"].equivalence_interval(0.05)
        called += -margin < low and high < margin
    assert called
    assert within(called / 2000, 2000, 0, most)
