"""The ledger of comparisons: what is barred goes by what is compared, and what stands written stays."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.store.schema import Design
from llama_variants.errors import ConfigError
from runners.planning.plan import Plan, load_plan
from runners.runs import ledger
from tests.runners import children
from tests.runners.conftest import MICRO_EXPERIMENT

ROOT = Path("runs")
FILE = Path("experiments/micro_theta.yaml")
ALL = ("control", "twin", "theta_100", "theta_200", "theta_300")


MICRO_PLAN: list[Plan] = []  # read once


@pytest.fixture(autouse=True)
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    MICRO_PLAN[:] = MICRO_PLAN or [load_plan(FILE)]


def plan(more: str = "", *, name: str = "micro-theta", seeds: int | None = None) -> Plan:
    """The micro experiment under a name, with further lines."""
    FILE.write_text(MICRO_EXPERIMENT.replace("micro-theta", name) + more)
    return load_plan(FILE, seeds=seeds)


def shown(one: Plan) -> Plan:
    ledger.note(one, ALL, ROOT)
    return one


def looked(one: Plan) -> str:
    return {arm.name: arm.looked for arm in ledger.seen(one, ROOT).arms}["theta_100"]


def test_an_experiment_renamed_after_a_look_is_barred():
    shown(plan("blocks: 3\n"))
    renamed = plan("blocks: 6\n", name="another")
    assert looked(renamed) == "3 blocks then, 6 now; then in micro-theta-micro"
    told = "\n".join(ledger.warnings(renamed, ROOT))
    assert "warning: theta_100 was looked at before (3 blocks then, 6 now; then in micro-theta-micro)" in told
    assert "first_seed: 3\n" in told
    assert "a second stage, beside `blocks: 3` as before:  confirm: {variants: [theta_100], blocks: 6}" in told
    # The same file grown is barred too, and so is a variant that has another name now.
    assert looked(plan("blocks: 6\n")) == "3 blocks then, 6 now"
    FILE.write_text(FILE.read_text().replace("theta_100", "other"))
    assert [arm.looked for arm in ledger.seen(load_plan(FILE), ROOT).arms][2] == "3 blocks then, 6 now"


def test_the_lines_to_paste_are_not_barred():
    shown(plan("blocks: 3\n"))
    assert looked(plan("blocks: 6\nfirst_seed: 3\n")) == ""
    staged = plan("blocks: 3\nconfirm: {variants: [theta_100], blocks: 6}\n")
    assert staged.confirm is not None
    assert looked(staged) == looked(staged.confirm) == ""
    assert not [line for stage in staged.stages for line in ledger.warnings(stage, ROOT)]


def test_looks_are_named_as_they_were_beside_the_second_stage():
    shown(plan("looks: [2, 3]\n"))
    told = "\n".join(ledger.warnings(plan("blocks: 5\n"), ROOT))
    assert "beside `looks: [2, 3]` as before:  confirm: {variants: [theta_100], blocks: 5}" in told
    staged = plan("looks: [2, 3]\nconfirm: {variants: [theta_100], blocks: 5}\n")
    assert not [line for stage in staged.stages for line in ledger.warnings(stage, ROOT)]


def test_blocks_that_were_shown_all_the_same_are_not_offered_again():
    shown(plan("blocks: 3\n"))
    shown(plan("blocks: 6\n"))  # which decided nothing, and was seen
    told = "\n".join(ledger.warnings(plan("blocks: 8\n"), ROOT))
    assert "first_seed: 6" in told
    assert "confirm:" not in told
    assert looked(plan("blocks: 3\n")) == ""  # what was declared first stands


def test_a_second_stage_is_offered_only_where_it_would_be_fresh():
    shown(plan("blocks: 3\nfirst_seed: 2\n"))
    told = "\n".join(ledger.warnings(plan("blocks: 4\n"), ROOT))
    assert "first_seed: 5" in told
    assert "confirm:" not in told  # behind three blocks from seed 0 lie two that were shown


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ("blocks: 3\n", "looks: [2, 3]\n", "judged once then, after [2, 3] blocks now"),
        ("looks: [2, 3]\n", "blocks: 3\n", "judged after [2, 3] blocks then, once now"),
        ("looks: [2, 3]\n", "looks: [2, 3, 5]\n", "3 blocks then, 5 now"),
        ("blocks: 3\n", "blocks: 3\nfirst_seed: 1\n", "blocks from seed 0 then, from 1 now"),
        ("blocks: 3\n", "blocks: 3\ndesign: independent\n", "blocks then, independent seeds now"),
        (
            "blocks: 3\ndesign: independent\n",
            "blocks: 4\ndesign: independent\n",
            "3 runs beside 3 of the control then, 4 runs beside 4 now",
        ),
        ("blocks: 3\n", "looks: [3]\n", ""),
        ("blocks: 3\n", "blocks: 3\n", ""),
        ("blocks: 3\n", "blocks: 2\nfirst_seed: 3\n", ""),
        ("blocks: 3\ndesign: independent\n", "blocks: 3\nfirst_seed: 3\ndesign: independent\n", ""),
    ],
)
def test_what_is_declared_otherwise_on_the_same_blocks_is_barred(then, now, says):
    shown(plan(then))
    assert looked(plan(now)) == says


@given(declared=st.lists(st.tuples(st.integers(0, 8), st.integers(2, 4)), min_size=1, max_size=4))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_the_first_declaration_on_a_block_counts(declared):
    """Against the definition: one stands unless an earlier one holds some of its blocks, and is not the same."""
    (ROOT / "ledger.json").unlink(missing_ok=True)
    before: list[range] = []
    for first, blocks in declared:
        one, mine = on_blocks(MICRO_PLAN[0], first, blocks), range(first, first + blocks)
        first_shared = next((other for other in before if set(other) & set(mine)), mine)
        assert (looked(one) == "") == (first_shared == mine)
        before.append(mine)
        shown(one)


def on_blocks(one: Plan, first: int, blocks: int, name: str = "micro-theta") -> Plan:
    """A plan with these seeds; its runs' keys stay."""
    seeds = range(first, first + blocks)
    arms = [replace(arm, runs=tuple(replace(arm.runs[0], seed=seed) for seed in seeds)) for arm in one.arms]
    return replace(one, arms=tuple(arms), name=name)


def test_a_screen_is_no_look_and_is_not_barred():
    shown(plan(seeds=1))
    assert not (ROOT / "ledger.json").exists()
    shown(plan())
    assert looked(plan(seeds=1)) == ""


def test_what_is_not_shown_is_not_written():
    ledger.note(plan(), [], ROOT)
    ledger.note(plan(), ["control"], ROOT)
    assert not (ROOT / "ledger.json").exists()
    ledger.note(plan("  theta_200: {model: {rotary: {theta: 200.0}}}\n"), ["theta_200"], ROOT)
    assert looked(plan("blocks: 6\n")) == ""


def test_a_part_of_a_plan_is_the_whole_declaration():
    whole = plan("looks: [2, 4]\n")
    part = whole.up_to(2, without={"theta_100"})
    ledger.note(part, ["theta_100"], ROOT)
    text = (ROOT / "ledger.json").read_text()
    shown(whole)
    assert json.loads(text)["comparisons"][0]["seeds"] == [0, 1, 2, 3]
    assert ledger.seen(part, ROOT) == ledger.seen(whole, ROOT)


def test_the_order_counts_experiments_and_the_same_keeps_its_place():
    other = "  theta_200: {model: {rotary: {theta: 200.0}}}\n"

    def order(one):
        return ledger.seen(one, ROOT).order

    first, second = "blocks: 3\n", other + "blocks: 3\n"
    assert order(plan(first)) == 1
    shown(plan(first))
    assert order(plan(first)) == 1
    assert order(plan(second, name="second")) == 2
    shown(plan(second, name="second"))
    third = "blocks: 3\nfirst_seed: 3\n"
    assert order(plan(third)) == 3  # the same name on fresh blocks asks once more
    shown(plan(third))
    # Whatever comes later, each keeps its own, also under another name and in a report made again.
    for _ in range(2):
        assert [order(shown(plan(*one))) for one in ((first,), (third,))] == [1, 3]
        assert order(shown(plan(first, name="renamed"))) == 1
        assert order(shown(plan(second, name="second"))) == 2
    # Another control's count begins anew; a plan without variants is in no order.
    base = Path("experiments/base/micro.yaml")
    base.write_text(base.read_text().replace("lr: 1e-2", "lr: 2e-2"))
    assert order(plan(first)) == 1


def test_an_experiment_keeps_its_place_while_its_arms_come_one_by_one():
    both = "  theta_200: {model: {rotary: {theta: 200.0}}}\nblocks: 3\n"
    ledger.note(plan(both), ["theta_100"], ROOT)
    shown(plan("  theta_300: {model: {rotary: {theta: 300.0}}}\nblocks: 3\n", name="between"))
    assert ledger.seen(shown(plan(both)), ROOT).order == 1
    assert ledger.seen(plan(both), ROOT).order == 1


def test_a_part_of_an_experiment_that_was_shown_asks_anew():
    """One variant picked out of two has a smaller family: it spends its own alpha, and the next one comes after it."""
    shown(plan("  theta_200: {model: {rotary: {theta: 200.0}}}\nblocks: 3\n"))
    picked = shown(plan("blocks: 3\n", name="picked"))
    assert ledger.seen(picked, ROOT).order == 2
    assert looked(picked) == ""
    later = plan("  theta_300: {model: {rotary: {theta: 300.0}}}\nblocks: 3\n", name="later")
    assert ledger.seen(later, ROOT).order == 3


def test_what_was_judged_by_otherwise_is_flagged_and_bars_nothing():
    shown(plan("blocks: 3\n"))
    assert ledger.seen(plan("blocks: 3\n"), ROOT).changed == {}
    base = Path("experiments/base/micro.yaml")
    base.write_text(base.read_text().replace("margin: 0.05", "margin: 0.1"))
    more = plan("  theta_200: {model: {rotary: {theta: 200.0}}}\nblocks: 3\n")
    assert ledger.seen(more, ROOT).changed == {"margin": (0.05, 0.1), "variants": (1, 2)}
    assert looked(more) == ""
    design = ledger.seen(more, ROOT)
    assert Design.from_tags(design.to_tags()) == design
    # A check stands in every experiment on the base: how many variants that has changes nothing of it.
    FILE.write_text(MICRO_EXPERIMENT.split("variants:")[0])
    assert ledger.seen(load_plan(FILE), ROOT).changed == {}


def test_what_stands_written_is_never_changed():
    shown(plan("blocks: 3\n"))
    before = json.loads((ROOT / "ledger.json").read_text())["comparisons"]
    base = Path("experiments/base/micro.yaml")
    base.write_text(base.read_text().replace("margin: 0.05", "margin: 0.1"))
    shown(plan("blocks: 3\n"))
    shown(plan("blocks: 6\n", name="another"))
    after = json.loads((ROOT / "ledger.json").read_text())["comparisons"]
    assert after[: len(before)] == before
    assert [one["experiment"] for one in after] == ["micro-theta-micro"] * 2 + ["another-micro"] * 2
    assert {one["role"] for one in after} == {"check", "variant"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"comparisons": [{"arm": "x"}]}', "\0\0"])
def test_a_damaged_ledger_is_named_and_kept(text):
    ROOT.mkdir(exist_ok=True)
    (ROOT / "ledger.json").write_text(text)
    one = plan()
    for use in (ledger.seen, ledger.warnings, lambda one, root: ledger.note(one, ALL, root)):
        with pytest.raises(ConfigError, match=r"ledger\.json: received .*; allowed: the file as it was; or none"):
            use(one, ROOT)
    assert (ROOT / "ledger.json").read_text() == text


def note_many(project: Path, begins: float, first: int, count: int) -> None:
    """The life of a child: from a common moment on, it notes experiments as fast as it can."""
    os.chdir(project)
    one = load_plan(FILE)
    time.sleep(max(0.0, begins - time.time()))
    for number in range(first, first + count):
        ledger.note(on_blocks(one, 10 * number, 3, f"number-{number}"), ALL, ROOT)


def test_processes_that_note_at_once_lose_nothing(project):
    plan()
    begins, count = time.time() + 2.0, 10
    noting = [children._server.Process(target=note_many, args=(project, begins, count * i, count)) for i in range(2)]
    for process in noting:
        process.start()
    for process in noting:
        process.join(timeout=120)
    assert [process.exitcode for process in noting] == [0, 0]
    comparisons = json.loads((ROOT / "ledger.json").read_text())["comparisons"]
    experiments = {one["experiment"] for one in comparisons if one["role"] == "variant"}
    assert experiments == {f"number-{number}-micro" for number in range(2 * count)}
    assert len(comparisons) == 4 * count
