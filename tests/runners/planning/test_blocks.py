"""Seeds as blocks: what is declared is what is run, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.store.schema import Design
from llama_variants import ConfigError
from runners.cli import main
from runners.planning.arms import seed_of
from runners.planning.files import MAX_BLOCKS
from runners.planning.plan import Plan, load_plan
from tests.conftest import ROOT
from tests.runners.conftest import write_project

BASE = Path("experiments/base/micro.yaml")
FILE = Path("experiments/micro_theta.yaml")
HEAD: dict[str, Any] = {"name": "drawn", "version": 1, "question": "Well?", "base": "micro"}
NAMES = st.text("abc_", min_size=1, max_size=3).filter(lambda name: name[0] != "_")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """In a project whose base has a budget, too."""
    monkeypatch.chdir(write_project(tmp_path))
    BASE.write_text(BASE.read_text() + "budgets: [2]\n")


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """A file of experiments/ as it is written, with whatever it may say of blocks."""
    small = st.integers(1, 6)
    looks = draw(st.none() | st.sets(st.integers(2, 6), min_size=1).map(sorted))
    own = st.none() if looks else st.none() | small
    variants = {
        name: {"model": {"rotary": {"theta": 100.0 + place}}} | ({"blocks": blocks} if blocks else {})
        for place, (name, blocks) in enumerate(draw(st.dictionaries(NAMES, own, min_size=1, max_size=3)).items())
    }
    declared = {
        "looks": looks,
        "blocks": draw(st.none() | (st.just(looks[-1]) if looks else small)),
        "first_seed": draw(st.none() | st.integers(0, 10**9)),
        "design": draw(st.none() | st.sampled_from(["blocks"] if looks else ["blocks", "independent"])),
        "budgets": draw(st.booleans()),
    }
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(list(variants)), min_size=1, unique=True))
        more = draw(st.none() | small)
        declared["confirm"] = {"variants": chosen} | ({"blocks": more} if more else {})
    return HEAD | {"variants": variants} | {key: value for key, value in declared.items() if value is not None}


def planned(written: dict[str, Any], seeds: int | None = None) -> Plan:
    file = Path("experiments/drawn.yaml")
    file.write_text(yaml.safe_dump(written))
    return load_plan(file, seeds=seeds)


def seeds_of(plan: Plan) -> dict[str, list[int]]:
    return {arm.name: [run.seed for run in arm.runs] for arm in plan.arms}


few = settings(max_examples=12)  # of a plan each, which is read from its files
OVERRIDE = st.none() | st.integers(1, 8)


@few
@given(written=declarations(), override=OVERRIDE)
def test_block_i_of_every_arm_has_seed_first_plus_i(written, override):
    plan = planned(written | {"design": "blocks"}, override)
    assert plan.first_seed == written.get("first_seed", 0)
    for stage in plan.stages:
        for arm, seeds in seeds_of(stage).items():
            assert seeds == list(range(stage.first_seed, stage.first_seed + len(seeds))), arm
            assert len(seeds) <= stage.blocks  # no block without its control
        assert stage.blocks == max(map(len, seeds_of(stage).values()))


@few
@given(written=declarations(), override=OVERRIDE)
def test_as_many_blocks_as_are_declared(written, override):
    plan = planned(written, override)
    looks = written.get("looks", [None])
    rest = override or written.get("blocks") or looks[-1] or 3
    for arm in plan.arms[1:]:
        own = written["variants"].get(arm.name, {}).get("blocks")
        assert len(arm.runs) == (override or own or rest), arm.name
    assert plan.looks == (() if override else tuple(written.get("looks", ())))
    assert plan.screen == (plan.blocks == 1 == max(len(arm.runs) for arm in plan.arms if arm.role == "variant"))
    if plan.confirm:
        expected = override or written["confirm"].get("blocks") or rest
        assert {len(seeds) for seeds in seeds_of(plan.confirm).values()} == {expected}
        assert plan.confirm.screen == (expected == 1)
        assert plan.confirm.looks == ()


@few
@given(written=declarations(), override=OVERRIDE)
def test_runs_of_a_block_are_next_to_each_other(written, override):
    plan = planned(written, override)
    place = {run.key: (block, j) for j, arm in enumerate(plan.arms) for block, run in enumerate(arm.runs)}
    order = [place[run.key] for run in plan.runs()]
    assert order == sorted(place.values())  # every run once, no run stands for two


@few
@given(written=declarations(), override=OVERRIDE)
def test_a_confirmation_shares_no_run_with_what_was_declared_whatever_the_override(written, override):
    whole, plan = planned(written), planned(written, override)
    if plan.confirm:
        fresh = {run.key for run in plan.confirm.runs()}
        assert fresh.isdisjoint(run.key for stage in (whole, plan) for run in stage.runs())


@few
@given(written=declarations(), blocks=st.integers(0, 7), fewer=st.integers(0, 7), data=st.data())
def test_a_part_is_the_beginning_of_the_whole(written, blocks, fewer, data):
    plan = planned(written)
    names = [arm.name for arm in plan.arms]
    without = data.draw(st.sets(st.sampled_from(names)))
    assert plan.up_to(blocks).runs() == plan.runs()[: len(plan.up_to(blocks).runs())]
    part = plan.up_to(blocks, without)
    first = {run.key for arm in plan.arms for run in arm.runs[:blocks]}
    left = [run for run in plan.runs() if run.key in first and (run.role == "control" or run.arm not in without)]
    assert part.runs() == left
    assert part.design() == plan.design()
    assert part.up_to(fewer, without).runs() == plan.up_to(min(blocks, fewer), without).runs()
    assert plan.up_to(max(len(arm.runs) for arm in plan.arms)).runs() == plan.runs()


@few
@given(written=declarations())
def test_the_store_gives_the_declaration_back(written):
    for stage in planned(written).stages:
        design = stage.design()
        assert Design.from_tags(design.to_tags()) == design
        assert (design.independent, design.first_seed, design.looks, design.screen) == (
            stage.independent,
            stage.first_seed,
            stage.looks,
            stage.screen,
        )
        if not stage.independent:
            assert [run.seed - design.first_seed for run in stage.arms[0].runs] == list(range(stage.blocks))


@few
@given(written=declarations(), first=st.integers(0, 1000))
def test_another_first_seed_far_enough_away_is_fresh(written, first):
    plan = planned(written | {"first_seed": first})
    after = max(stage.first_seed + stage.blocks for stage in plan.stages)
    if plan.independent:  # a variant may have more runs than the control
        after = max(after, first + 12)
    later = planned(written | {"first_seed": after})
    old, new = ({run.key for stage in one.stages for run in stage.runs()} for one in (plan, later))
    assert old.isdisjoint(new)


@few
@given(written=declarations())
def test_independent_arms_share_no_seed_and_move_none_when_one_is_added(written):
    written = {key: value for key, value in written.items() if key != "looks"} | {"design": "independent"}
    seeds = seeds_of(planned(written))
    flat = [seed for each in seeds.values() for seed in each]
    assert len(set(flat)) == len(flat)
    first = written.get("first_seed", 0)
    assert seeds["control"] == list(range(first, first + len(seeds["control"])))
    more = written["variants"] | {"another": {"model": {"rotary": {"theta": 7.0}}}}
    assert seeds.items() <= seeds_of(planned(written | {"variants": more})).items()


@given(name=st.text("abc_/", min_size=1), number=st.integers(0, 100))
def test_independent_seeds_are_a_function_of_name_and_number(name, number):
    assert seed_of("control", number) == number
    assert 0 <= seed_of(name, number) < 2**31
    assert seed_of(name, number) != seed_of(name, number + 1)


SPREADS = """decide:
  metric: final/val_loss
  alpha: 0.05
  margin: 0.05
  difference: {sd: 0.01, df: 4.5, low: 0.005, high: 0.02, kinds: {norm: 0.006}, source: twelve blocks}
  seed: {sd: 0.03, low: 0.02, high: 0.04, source: logs of others}
"""


def test_the_prior_is_of_what_is_judged_and_only_where_it_is_known_how_well():
    text = BASE.read_text()
    (line,) = (line for line in text.splitlines(keepends=True) if line.startswith("decide:"))
    BASE.write_text(text.replace(line, SPREADS))
    prior = load_plan(FILE).prior
    assert prior is not None
    assert (prior.sd, prior.df, prior.source) == (0.01, 4.5, "twelve blocks")
    assert load_plan(FILE).design().prior == prior
    FILE.write_text(FILE.read_text() + "design: independent\n")
    plan = load_plan(FILE)
    assert plan.prior is None  # no degrees of freedom: it plans, and judges nothing
    assert plan.decide.seed is not None
    BASE.write_text(BASE.read_text().replace("seed: {sd: 0.03,", "seed: {sd: 0.03, df: 62,"))
    prior = load_plan(FILE).prior
    assert prior is not None
    assert (prior.sd, prior.df) == (0.03, 62)


EARLIER = [
    ("seeds: {control: 8, variant: 3}", "seeds: ", "`blocks: 5`: every arm, the control too, runs this many seeds"),
    ("seeds: 7", "seeds: ", "`blocks: 7`: every arm, the control too, runs this many seeds"),
    ("seeds: [0, 1]", "seeds: ", "`blocks: 5`: every arm, the control too, runs this many seeds"),
    ("paired: false", "paired: ", "`design: independent` gives every arm its own"),
    ("paired: true", "paired: ", "nothing: seeds are blocks by default"),
    ("variants: {b: {seeds: 4, train: {lr: 2e-2}}}", "variants.b.seeds: ", "`blocks: 4`, or nothing"),
    ("confirm: {variants: [theta_100], seeds: {control: 8}}", "confirm.seeds: ", "`blocks: 5`: every arm"),
]


def test_independent_seeds_have_no_looks(capsys):
    """Their analysis knows none: looks that are declared and left out would be a surprise after the runs."""
    FILE.write_text(FILE.read_text() + "looks: [2, 3]\ndesign: independent\n")
    assert main(["plan", str(FILE)]) == 2
    assert "looks: received [2, 3] with `design: independent`; allowed: `design: blocks`" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "place", "says"), EARLIER)
def test_an_earlier_form_ends_in_2_and_what_to_write(capsys, line, place, says):
    text = FILE.read_text()
    if line.startswith("variants"):
        text = text[: text.index("variants:")]
    FILE.write_text(f"{text}{line}\n")
    before = sorted(Path().rglob("*"))
    for verb in ("plan", "run"):
        assert main([verb, str(FILE), "--device", "cpu"] if verb == "run" else [verb, str(FILE)]) == 2
        error = capsys.readouterr().err
        assert "1 problem, nothing was run" in error
        assert f"micro_theta.yaml:{len(FILE.read_text().splitlines())}: {place}" in error
        assert says in error
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("blocks: 3", "seeds: {control: 3, check: 2}", ["seeds: received", "`blocks: 5`: every arm"]),
        ("margin: 0.05", "margin: 0.05, sigma: 0.02", ["decide.sigma: received", "`seed: {sd: …, df: …"]),
        ("margin: 0.05", "margin: 0.05, sigma_range: [1, 2]", ["decide.sigma_range: received", "`low` and `high`"]),
        ("expect: same}", "expect: same, seeds: 4}", ["checks.twin.seeds: received", "as many blocks as the rest"]),
        (
            "twin: {train: {init_perturbation: 9.5367431640625e-07}, expect",
            "again: {expect",
            ["checks.again: received the recipe of 'control'", f"init_perturbation: {2**-20}"],
        ),
        (
            "expect: same}",
            "expect: same}\n  other: {train: {init_perturbation: 9.5367431640625e-07}, expect: same}",
            ["checks.other: received the recipe of 'twin'"],
        ),
    ],
)
def test_an_earlier_form_of_a_base_gets_what_to_write(old, new, says):
    text = BASE.read_text()
    assert text.count(old) == 1
    BASE.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_plan(FILE)
    (problem,) = caught.value.problems
    assert all(part in str(problem) for part in says), problem


@few
@given(value=st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text("ab"), st.integers()))
def test_what_is_to_be_written_can_be_written(value):
    """Whatever the old form says, the number of blocks that the message names is one that a file may have."""
    with pytest.raises(ConfigError) as caught:
        planned(HEAD | {"seeds": value})
    (problem,) = caught.value.problems
    count = int(problem.allowed.partition("blocks: ")[2].partition("`")[0])
    assert 1 <= count <= MAX_BLOCKS
    assert planned(HEAD | {"blocks": count}).blocks == count


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_says_how_its_checks_are_judged(file):
    """The base's twin and its known-bad variant stand in every table, in the control's blocks."""
    arms = {arm.name: arm for arm in load_plan(file).arms}
    control = [run.seed for run in arms["control"].runs]
    checks = {name: arm for name, arm in arms.items() if arm.role == "check"}
    assert sorted(str(arm.expect) for arm in checks.values()) == ["same", "worse"]
    for arm in checks.values():
        assert [run.seed for run in arm.runs] == control[: len(arm.runs)]
    assert arms["twin"].diff == {"train.init_perturbation": (0.0, 2**-20)}
