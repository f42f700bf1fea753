import json
import math

import pandas as pd
import pytest

from analysis import plots, report
from analysis.compare import COLUMNS, compare
from tests.analysis.tables import arm, change, design, frame

ARMS = {
    "again": [10.1, 10.3, 10.5],
    "nope": [19.0, 19.2, 19.4],
    "wide": [6.0, 6.2, 6.4],
    "same": [10.2, 10.3, 10.5],
    "part": [10.2, 10.3],
    "bad": [10.2, 10.3, 10.4],
    "none": [],
}
PLAN = design(
    arm("again", 3, "check", expect="same"),
    arm("nope", 3, "check", expect="worse"),
    arm(
        "wide",
        3,
        num_params=1100,
        diff={"model.mlp.intermediate_size": (256, 512), "model.head_dim": (16, 8)},
        solved=("model.head_dim",),
        expect="worse",
    ),
    *(arm(name, 3) for name in ("same", "part", "bad", "none")),
)


@pytest.fixture
def runs():
    whole = frame({"control": [10.0, 10.2, 10.4, 10.6]} | ARMS, PLAN)
    return change(whole, "bad-1", status="FAILED", invalid="the label shift is off")


@pytest.fixture
def table(runs):
    return compare(runs, PLAN)


@pytest.fixture
def curves(runs):
    rows = [
        (run["run_key"], run["arm"], run["seed"], "val/loss", step, step * 256.0, run["final/val_loss"] + 100 / step)
        for run in runs.to_dict("records")
        for step in range(100, 1001, 100)
    ]
    return pd.DataFrame(rows, columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])


def test_text_shows_every_arm_its_numbers_and_its_word(table):
    lines = report.table_text(table, PLAN).splitlines()
    assert lines[0] == "width · tiny · 256k tokens/run · final/val_loss · margin 1 · declared seeds 4 + 3"
    rows = {line.split()[0]: line for line in lines[2:-1] if not line.startswith(" ")}
    assert list(rows) == table["arm"].tolist()
    wide = table.set_index("arm").loc["wide"]
    assert f"{wide['delta']:+.4f} [{wide['ci_low']:+.4f}, {wide['ci_high']:+.4f}]" in rows["wide"]
    assert " better " in rows["wide"]
    assert "+10.0 %" in rows["wide"]
    assert "10.3000, sigma" in rows["control"]
    assert "2/3" in rows["part"]
    assert "2 of 3 runs finished" in rows["part"]
    assert "the label shift is off" in rows["bad"]
    assert "gates passed 20/21 · runs counted 20/25" in lines[-1]
    assert "smallest effect this design could see" in lines[-1]


def test_text_fits_and_has_no_nan(table):
    long = table.assign(why=table["why"] + " and this reason goes on and on, as reasons do," * 4)
    text = report.table_text(long, PLAN)
    assert max(map(len, text.splitlines())) <= 150
    assert text.count("goes on and on") + text.count("goes on\n") >= len(table)  # wrapped, not cut
    assert "nan" not in text
    assert "\x1b" not in text


def test_screens_and_empty_tables_print():
    plan = design(arm("a", 1), control=1, screen=True)
    text = report.table_text(compare(frame({"control": [10.0], "a": [12.5]}, plan), plan), plan)
    assert "+2.5000" in text
    assert "screen" in text
    empty = report.table_text(compare(frame({}, plan), plan), plan)
    assert "0/1" in empty
    assert "nan" not in text + empty


@pytest.mark.parametrize(
    ("p", "shown"), [(0.5, "0.50"), (0.0213, "0.021"), (0.00002, "2e-5"), (1e-9, "<1e-6"), (math.nan, "")]
)
def test_p_is_short(table, p, shown):
    one = table[table["arm"] == "wide"].assign(p_adj=p)
    row = report.markdown(pd.concat([table.head(1), one]), PLAN).split("| wide |")[1].split("|")
    assert row[3].strip() == shown


def test_markdown_tells_what_changed_and_what_was_not_matched(table):
    text = report.markdown(table, PLAN, "figure.png")
    assert PLAN.question in text
    assert "![" in text
    assert "`model.mlp.intermediate_size` `256` → `512`, `model.head_dim` `16` → `8` (solved to match)" in text
    assert "- **again** (check): nothing but the seeds" in text
    assert "- **wide**: parameters +10.00 %" in text
    assert "contradicts the expectation (worse)" in text
    assert "nan" not in text
    words = set(table["verdict"]) - {""}
    assert words == {"as expected", "worse", "better", "equivalent", "undecided", "invalid"}
    assert all(word in text.split("## How to read the words")[1] for word in words)
    assert "![" not in report.markdown(table, PLAN)


def test_files_are_written_whole(runs, curves, table, tmp_path):
    files = report.write(PLAN, runs, curves, tmp_path / "new")
    assert files == {
        "report": tmp_path / "new/report.md",
        "figure": tmp_path / "new/figure.png",
        "table": tmp_path / "new/table.json",
    }
    assert sorted((tmp_path / "new").iterdir()) == sorted(files.values())
    assert files["report"].read_text(encoding="utf-8") == report.markdown(table, PLAN, "figure.png")
    assert files["figure"].read_bytes().startswith(b"\x89PNG")
    records = json.loads(files["table"].read_text(), parse_constant=pytest.fail)
    assert [tuple(record) for record in records] == [COLUMNS] * len(table)
    assert records[3]["delta"] == table.loc[3, "delta"]
    assert records[-1]["mean"] is None


def test_a_failure_leaves_the_old_files(runs, curves, tmp_path, monkeypatch):
    report.write(PLAN, runs, curves, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".png"}

    def fail(self, *args, **kwargs):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(PLAN, runs, curves, tmp_path)
    assert {file: file.read_bytes() for file in before} == before


def test_figure_draws_each_arm_once_and_each_verdict(runs, curves, table):
    left, middle, right = plots.figure(table, runs, curves, PLAN).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == table["arm"].tolist()
    assert left.get_ylabel() == "validation loss (nats/token)"
    assert len(lines["none"].get_xdata()) == 0
    assert lines["control"].get_xdata().tolist()[-1] == 256_000
    assert lines["control"].get_ydata()[-1] == pytest.approx(10.3 + 0.1)
    differences = {line.get_label(): line.get_ydata() for line in middle.lines}
    assert abs(differences["control"]).max() < 1e-9
    for name, line in lines.items():
        assert differences[name] == pytest.approx(
            line.get_ydata() - lines["control"].get_ydata()[: len(line.get_ydata())]
        )
    words = [text.get_text() for text in right.texts]
    verdicts = table["verdict"].tolist()[1:]
    assert [word for word in words if word in verdicts] == verdicts
    assert right.get_xlim()[1] < 9 < table.loc[2, "delta"] + 1  # the known-bad check is an arrow with its value
    assert "+8.900" in words


def test_runs_that_do_not_count_are_not_drawn(runs, curves, table):
    lowest = change(curves.rename(columns={"value": "final/val_loss"}), "bad-1", final__val_loss=0.0)
    left = plots.figure(table, runs, lowest.rename(columns={"final/val_loss": "value"}), PLAN).axes[0]
    assert min(min(line.get_ydata(), default=9) for line in left.lines) > 5


def test_figure_without_curves_or_verdicts():
    plan = design(arm("a", 3))
    runs = frame({}, plan)
    empty = pd.DataFrame(columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])
    drawing = plots.figure(compare(runs, plan), runs, empty, plan)
    assert [text.get_text() for text in drawing.axes[2].texts] == ["undecided"]
