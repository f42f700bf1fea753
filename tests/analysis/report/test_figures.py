from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from analysis.report import figures
from analysis.stats.compare import compare
from analysis.stats.worth import Scaling
from analysis.store.schema import Prior
from tests.analysis.report.conftest import NO_CURVES, PLAN
from tests.analysis.tables import arm, change, design, frame

BUDGETS = np.add.outer([13.3, 10.3, 8.3], [-0.1, 0.0, 0.0, 0.1])
SCALING = Scaling(factors=(0.5, 1.0, 2.0), blocks=(0, 1, 2, 3), losses=BUDGETS, alpha=0.05)


def test_each_arm_is_drawn_once_at_its_losses(runs, curves, table):
    left, right = figures.losses(runs, curves, PLAN).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == table["arm"].tolist()
    assert left.get_ylabel() == "validation loss (nats/token)"
    assert left.get_xlabel() == "training tokens"
    assert len(lines["none"].get_xdata()) == 0
    assert lines["control"].get_xdata().tolist()[-1] == 256_000
    assert lines["control"].get_ydata()[-1] == pytest.approx(10.3 + 0.1)
    differences = {line.get_label(): line.get_ydata() for line in right.lines}
    assert abs(differences["control"]).max() < 1e-9
    assert len(differences["none"]) == 0
    for name in ("twin", "nope", "wide", "same"):  # each step's mean over the three blocks that both have
        own = runs[runs["arm"] == name]["final/val_loss"].to_numpy() - [10.0, 10.2, 10.4]
        assert differences[name] == pytest.approx([own.mean()] * 9)
        assert len(differences[name]) == len(lines[name].get_ydata())


def test_a_difference_is_within_its_block_or_else_from_the_mean():
    """A spread that control and arm share is in no difference; where seeds are independent it is."""
    generator = np.random.default_rng(0)
    shared, own = 100 * generator.normal(size=4), generator.normal(size=4)
    plan = design(arm("a", 4))
    given = frame({"control": shared, "a": shared + own}, plan)
    found = figures.less_control(given, plan, plan.metric)
    values = found.loc[found["arm"] == "a", plan.metric]
    assert values.to_numpy() == pytest.approx(own)
    assert found.loc[found["arm"] == "control", plan.metric].abs().max() == 0
    lost = figures.less_control(given[given["run_key"] != "control-2"], plan, plan.metric)
    assert lost.loc[lost["arm"] == "a", "block"].tolist() == [0, 1, 3]
    alone = figures.less_control(given, replace(plan, independent=True), plan.metric)
    assert alone.loc[alone["arm"] == "a", plan.metric].to_numpy() == pytest.approx(shared + own - shared.mean())


def test_runs_that_do_not_count_are_not_drawn(runs, curves):
    lowest = change(curves.rename(columns={"value": "final/val_loss"}), "bad-1", final__val_loss=0.0)
    left = figures.losses(runs, lowest.rename(columns={"final/val_loss": "value"}), PLAN).axes[0]
    assert min(min(line.get_ydata(), default=9) for line in left.lines) > 5


def test_the_forest_has_each_difference_its_interval_and_its_word(runs, table):
    (axes,) = figures.forest(table, PLAN, runs).axes
    words = [text.get_text() for text in axes.texts]
    verdicts = table["verdict"].tolist()[1:]
    assert [word for word in words if word in verdicts] == verdicts
    assert axes.get_xlim()[1] < 9 < table.loc[2, "delta"] + 1  # the known-bad check is an arrow with its value
    assert f"{table.loc[2, 'delta']:+.3f}" in words
    points = {round(float(line.get_xdata()[0]), 6) for line in axes.lines if len(line.get_xdata()) == 1}
    assert round(float(table.set_index("arm").loc["wide", "delta"]), 6) in points
    brackets = [
        line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "|" and line.get_color() == "0.55"
    ]
    effects = table["mde"].iloc[1:].dropna()
    assert brackets == [pytest.approx([-effect, effect]) for effect in effects]
    segments = [c.get_segments()[0][:, 0].tolist() for c in axes.collections if hasattr(c, "get_segments")]
    wide = table.set_index("arm").loc["wide"]
    assert [wide["ci_low"], wide["ci_high"]] in [pytest.approx(segment) for segment in segments]
    behind = [line.get_xdata().tolist() for line in axes.lines if line.get_color() == "0.6"]
    ends = [wide["delta"] - wide["independent_half"], wide["delta"] + wide["independent_half"]]
    assert ends in [pytest.approx(line) for line in behind]
    dots = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert pytest.approx([-4.0, -3.9, -4.05]) in dots  # wide, block by block
    assert len(dots) == len([x for x in table["delta"].iloc[1:] if abs(x) < axes.get_xlim()[1]])
    twin = table.set_index("arm").loc["twin"]
    assert f"sd of the twin ±{twin['own_sd']:.2g}" in axes.get_title(loc="left")
    heights = {round(float(y) % 1, 6) for line in axes.lines if line.get_marker() == "." for y in line.get_ydata()}
    assert len(heights) == 3  # a block stands in one place, whatever the arm


def test_blocks_after_the_deciding_look_are_not_drawn():
    plan = design(arm("a", 4), control=4, looks=(2, 4), margin=0.1, prior=Prior(sd=0.05, df=10, source="x"))
    given = frame({"control": [1.0, 2.0, 3.0, 4.0], "a": [2.0, 3.1, 4.0, 9.0]}, plan)
    table = compare(given, plan)
    assert table.loc[1, ["verdict", "look"]].tolist() == ["worse", 2.0]
    (axes,) = figures.forest(table, plan, given).axes
    assert [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "."] == [2]


def test_speed_and_loss_with_the_line_of_equal_time(table):
    speeds = table.assign(tokens_per_s=np.linspace(900, 1400, len(table)))
    (axes,) = figures.throughput(speeds, PLAN, SCALING).axes
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    x, y = line.get_data()
    assert y == pytest.approx(SCALING.loss(900 / x))
    assert np.interp(900, x, y) == pytest.approx(10.3, abs=1e-3)  # at its own speed the control reaches its own loss
    assert (np.diff(y) > 0).all()  # a faster arm has less time, and so has the control
    assert axes.get_xlabel() == "training throughput (tokens/s)"
    (without,) = figures.throughput(speeds, PLAN, None).axes
    assert not [line for line in without.lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize(
    "values", [{}, {"control": [10.0]}, {"control": [10.0], "a": [11.0]}, {"a": [11.0, 12.0, 13.0]}]
)
def test_nothing_to_draw_is_no_error(values):
    plan = design(arm("a", 3), arm("x" * 100, 3))
    given = frame(values, plan)
    table = compare(given, plan)
    for drawing in (
        figures.losses(given, NO_CURVES, plan),
        figures.forest(table, plan, given),
        figures.throughput(table, plan, SCALING),
    ):
        drawing.canvas.draw()
    labels = [label.get_text() for label in figures.forest(table, plan, given).axes[0].get_yticklabels()]
    assert all(len(label) < 36 for label in labels)


def test_no_two_arms_look_alike_in_print():
    styles = figures.arm_styles(design(*(arm(f"a{i}", 1) for i in range(12))))
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == 13
    neighbours = list(styles.values())
    assert all(a["marker"] != b["marker"] for a, b in pairwise(neighbours))


def test_budgets_are_no_arms_of_a_figure(curves):
    plan = design(arm("a", 3), arm("tokens_2x", 3, "budget", tokens=512_000))
    given = frame({"control": [1.0, 2, 3, 4], "a": [1.0, 2, 3], "tokens_2x": [1.0, 2, 3]}, plan)
    drawn = pd.DataFrame(
        [
            (key, name, 0, "val/loss", 10, tokens, 5.0)
            for key, name, tokens in (("a-0", "a", 256e3), ("tokens_2x-0", "tokens_2x", 512e3))
        ],
        columns=NO_CURVES.columns,
    )
    left = figures.losses(given, drawn, plan).axes[0]
    assert [line.get_label() for line in left.lines] == ["control", "a"]
    assert [line.get_xdata().tolist() for line in left.lines] == [[], [256e3]]
