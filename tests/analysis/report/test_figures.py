from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from analysis.report import figures
from analysis.stats.compare import compare
from analysis.stats.worth import Scaling
from tests.analysis.report.conftest import NO_CURVES, PLAN
from tests.analysis.tables import arm, change, design, frame

SCALING = Scaling(factors=(0.5, 1.0, 2.0), ns=(4, 4, 4), means=(13.3, 10.3, 8.3), sds=(0.1, 0.1, 0.1))


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
    for name, line in lines.items():
        level = lines["control"].get_ydata()[: len(line.get_ydata())]
        assert differences[name] == pytest.approx(line.get_ydata() - level)


def test_runs_that_do_not_count_are_not_drawn(runs, curves):
    lowest = change(curves.rename(columns={"value": "final/val_loss"}), "bad-1", final__val_loss=0.0)
    left = figures.losses(runs, lowest.rename(columns={"final/val_loss": "value"}), PLAN).axes[0]
    assert min(min(line.get_ydata(), default=9) for line in left.lines) > 5


def test_the_forest_has_each_difference_its_interval_and_its_word(table):
    (axes,) = figures.forest(table, PLAN).axes
    words = [text.get_text() for text in axes.texts]
    verdicts = table["verdict"].tolist()[1:]
    assert [word for word in words if word in verdicts] == verdicts
    assert axes.get_xlim()[1] < 9 < table.loc[2, "delta"] + 1  # the known-bad check is an arrow with its value
    assert "+8.900" in words
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
        figures.forest(table, plan),
        figures.throughput(table, plan, SCALING),
    ):
        drawing.canvas.draw()
    labels = [label.get_text() for label in figures.forest(table, plan).axes[0].get_yticklabels()]
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
