"""What is known of the spread, from one place: `plan` and `power` say the same of the same store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.stats.power import Layout, blocks_needed, detectable_effect
from runners.cli import main
from runners.planning.plan import load_plan
from runners.verbs.effects import spread
from tests.runners.conftest import MICRO_EXPERIMENT
from tests.runners.made_up import finish

ROOT, FILE, BASE = Path("runs"), Path("experiments/micro_theta.yaml"), Path("experiments/base/micro.yaml")
STATED = "difference: {sd: 0.02, df: DF, low: 0.01, high: 0.04, kinds: {mlp: 0.03}, source: a guess}"
MORE = (
    "  half: {model: {mlp: {expansion: 4/3}}}\n"
    "  both: {model: {mlp: {expansion: 2}, norm: {eps: 1e-4}}}\n"
    "  later: {model: {layers: {0: {mlp: {expansion: 4/3}}}}}\n"
)


@pytest.fixture(autouse=True)
def inside(project, monkeypatch):
    monkeypatch.chdir(project)


def write(more: str = "", *, df: float | None = None) -> None:
    """The experiment with further lines, on a base that states a spread where ``df`` is given."""
    FILE.write_text(MICRO_EXPERIMENT + more)
    if df is not None:
        BASE.write_text(BASE.read_text().replace("margin: 0.05}", f"margin: 0.05, {STATED.replace('DF', str(df))}}}"))


def noise(run) -> float:
    """A loss that depends on the arm and the seed, and on no order."""
    number = sum(map(ord, run.arm)) + 1000 * run.seed
    return 4.0 + 0.1 * np.random.default_rng(run.seed).normal() + 0.02 * np.random.default_rng(number).normal()


def asked(capsys, verb: str, *words: str) -> dict:
    assert main([verb, str(FILE), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("more", ["blocks: 4\n", "looks: [3, 4]\n", "blocks: 4\ndesign: independent\n"])
@pytest.mark.parametrize("stated", [True, False])
def test_plan_and_power_agree_on_the_same_store(capsys, more, stated):
    write(more, df=3.0 if stated else None)
    finish(load_plan(FILE).runs(), noise)
    planned, table = asked(capsys, "plan", "--device", "cpu"), asked(capsys, "power")
    (row,) = (row for row in table["rows"] if row["blocks"] == 4)
    assert planned["smallest_detectable_effect"] == pytest.approx(row["effect"], rel=1e-12)
    assert [planned[name] for name in ("sd", "sd_low", "sd_high", "sd_source")] == [
        table[name] for name in ("sd", "sd_low", "sd_high", "sd_source")
    ]
    main(["plan", str(FILE), "--device", "cpu"])
    main(["power", str(FILE)])
    assert capsys.readouterr().out.count(table["sd_source"]) == 2


def test_what_is_stated_is_taken_by_kind():
    write(MORE, df=100)
    plan = load_plan(FILE)
    known = spread(plan, ROOT)
    assert known is not None
    assert (known.sd, known.low, known.high, known.df) == (0.03, 0.01, 0.04, 100)  # of the variants that scatter most
    assert known.source == "stated by the base for mlp (0.0300): a guess"
    sds = {arm.name: known.of(arm) for arm in plan.arms if arm.role == "variant"}
    assert sds == {"theta_100": 0.02, "half": 0.03, "both": 0.02, "later": 0.03}


@pytest.mark.parametrize("blocks", [4, 7])
def test_plan_and_power_count_with_the_sd_of_the_kind(capsys, blocks):
    """Also where the table has no such number of blocks of its own."""
    write(MORE + f"blocks: {blocks}\n", df=3.0)
    planned, table = asked(capsys, "plan", "--device", "cpu"), asked(capsys, "power")
    (row,) = (row for row in table["rows"] if row["blocks"] == blocks)
    assert table["sd"] == planned["sd"] == 0.03
    assert (
        planned["effects"]["half"] == planned["smallest_detectable_effect"] == pytest.approx(row["effect"], rel=1e-12)
    )
    assert planned["effects"]["theta_100"] < planned["effects"]["half"]


def test_power_is_that_of_the_procedure(capsys):
    write(df=6.0)
    plan = load_plan(FILE)
    table = asked(capsys, "power", "--effect", "0.1")
    layout = Layout(blocks=5, family=1, alpha=0.05, prior=plan.prior)
    (five,) = (row for row in table["rows"] if row["blocks"] == 5)
    assert five["effect"] == detectable_effect(0.02, layout)
    assert five["effect_low"] == detectable_effect(0.01, layout) < five["effect"] < five["effect_high"]
    assert table["blocks_needed"] == blocks_needed(0.1, 0.02, layout)
    assert table["blocks_needed_low"] <= table["blocks_needed"] <= table["blocks_needed_high"]


@pytest.mark.parametrize("df", [5, 7])
def test_finished_runs_count_where_they_know_more_than_the_base(df):
    """Two variants in four blocks have six degrees of freedom."""
    write("  half: {model: {mlp: {expansion: 4/3}}}\nblocks: 4\n", df=df)
    plan = load_plan(FILE)
    finish(plan.runs(), noise)
    losses = pd.DataFrame({arm.name: [noise(run) for run in arm.runs] for arm in plan.arms})
    sds = losses[["theta_100", "half"]].sub(losses["control"], axis=0).std()
    known = spread(plan, ROOT)
    assert known is not None
    if df == 5:
        assert known.df == 6
        assert known.sd == pytest.approx(np.sqrt((sds**2).mean()))
        assert (known.low, known.high) == pytest.approx((sds.min(), sds.max()))
        assert known.source.startswith("measured on finished runs of this plan: theta_100, half; 4 blocks")
    else:
        assert known.source == "stated by the base for mlp (0.0300): a guess"


def test_independent_seeds_go_by_runs(capsys):
    write("blocks: 3\ndesign: independent\n")
    plan = load_plan(FILE)
    finish(plan.runs(), noise)
    runs = {arm.name: np.array([noise(run) for run in arm.runs]) for arm in plan.arms}
    known = spread(plan, ROOT)
    assert known is not None
    assert known.df == 4
    assert known.sd == pytest.approx(np.sqrt(np.mean([runs[name].var(ddof=1) for name in ("control", "theta_100")])))


def test_where_nothing_else_is_known_the_twin_tells(capsys):
    write()
    plan = load_plan(FILE)
    finish([run for run in plan.runs() if run.role != "variant"], noise)
    known = spread(plan, ROOT)
    assert known is not None
    assert known.source.startswith("measured on finished runs of this plan: twin; 3 blocks")
    differences = [noise(twin) - noise(run) for run, twin in zip(plan.arms[0].runs, plan.arms[1].runs, strict=True)]
    assert known.sd == pytest.approx(np.std(differences, ddof=1))


def test_what_is_not_known_is_said_in_the_same_words(capsys):
    write()
    finish(load_plan(FILE).up_to(2).runs(), noise)  # one degree of freedom
    assert main(["plan", str(FILE), "--device", "cpu"]) == 0
    said = "the sd of differences within blocks on micro is not known"
    assert said in capsys.readouterr().out
    assert main(["power", str(FILE)]) == 2
    assert said in capsys.readouterr().err
