import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.report import page as report
from analysis.report import render
from analysis.report.cells import finding
from analysis.report.sections import Stage
from analysis.stats.compare import COLUMNS, compare
from tests.analysis.report.conftest import NO_CURVES, PLAN
from tests.analysis.tables import arm, design, frame


def test_text_shows_every_arm_its_numbers_and_its_word(table):
    text, bottom = report.table_text(table, PLAN).split("\nsmallest effect this design could see ")
    lines, bottom = text.splitlines(), " ".join(bottom.split())
    assert lines[0] == "width · tiny · 256k tokens/run · final/val_loss · margin 1 · declared blocks 3"
    rows = {line.split()[0]: line for line in lines[2:] if not line.startswith(" ")}
    assert list(rows) == table["arm"].tolist()
    wide = table.set_index("arm").loc["wide"]
    assert f"{wide['delta']:+.4f} [{wide['ci_low']:+.4f}, {wide['ci_high']:+.4f}]" in rows["wide"]
    assert " better " in rows["wide"]
    assert "+10.0 %" in rows["wide"]
    assert "10.3000, seed sd 0.2582" in rows["control"]
    assert "2/3" in rows["part"]
    assert "2 of 3 blocks done" in rows["part"]
    assert "the label shift is off" in rows["bad"]
    assert "gates passed 20/21 · runs counted 20/25" in bottom
    judged = table[table["arm"].isin(["wide", "same"])]
    effects = sorted(judged["mde"])
    widths = sorted((judged["ci_high"] - judged["ci_low"]) / 2 / judged["independent_half"])
    assert bottom.startswith(
        f"{effects[0]:.4f} to {effects[1]:.4f} · seed correlation {judged['correlation'].min():+.2f} to "
    )
    assert f"intervals {widths[0]:.2f} to {widths[1]:.2f} as wide as independent seeds would give" in bottom
    assert f"floor, sd of twin: {table.loc[1, 'own_sd']:.4f}" in bottom
    assert "programme" not in text + bottom


def test_one_sentence_says_what_was_found_of_every_variant(table):
    wide = table.set_index("arm").loc["wide"]
    size = f"{-wide['delta']:.4f} nats ({-wide['ci_high']:.4f} to {-wide['ci_low']:.4f})"
    assert finding(table, PLAN).removeprefix("Found: ").removesuffix(".").split("; ") == [
        f"wide is better than the control by {size}",
        "same is equivalent to the control within 1 nats",
        "part is undecided",
        "bad is invalid",
        "none is undecided",
        "the checks (twin, nope) came out as expected",
    ]
    assert " ".join(report.table_text(table, PLAN).split()).endswith(finding(table, PLAN))
    assert finding(table, PLAN) in report.summary_markdown(table, PLAN)


def test_what_stays_open_has_its_interval(table):
    wider = table.assign(verdict="undecided", ci_low=-1.0, ci_high=2.0)
    assert "; same is undecided, between -1.0000 and +2.0000; " in finding(wider, PLAN)


@pytest.mark.parametrize(
    ("check", "verdict", "words"),
    [
        ("twin", "differs", "believe it with care, for twin differs from the control, as 1 in 20 honest ones do."),
        ("nope", "undecided", "believe it with care, for nope, known to be worse, is undecided."),
    ],
)
def test_the_sentence_says_where_a_check_came_out_otherwise(table, check, verdict, words):
    otherwise = table.assign(verdict=table["verdict"].mask(table["arm"] == check, verdict))
    assert finding(otherwise, PLAN).endswith(words)
    assert finding(otherwise, replace(PLAN, screen=True)) == ""


@pytest.mark.filterwarnings("error")
def test_one_block_with_budgets_is_reported_without_an_sd(tmp_path):
    others = [arm("half", 1, "budget", tokens=128_000), arm("double", 1, "budget", tokens=512_000)]
    plan = design(arm("a", 1), *others, control=1, screen=True)
    runs = frame({"control": [4.0], "a": [4.2], "half": [4.5], "double": [3.7]}, plan)
    files = report.write([Stage(design=plan, runs=runs, curves=NO_CURVES)], tmp_path)
    assert "| 0.5x | 128k | 1 | 4.5000 | – |" in files["markdown"].read_text()


def test_the_programme_has_a_column_from_its_second_experiment_on(runs):
    for order, words in ((2, "2nd"), (3, "3rd"), (11, "11th"), (21, "21st")):
        plan = replace(PLAN, order=order)
        table = compare(runs, plan)
        text = " ".join(report.table_text(table, plan).split())
        assert "p (adj.) p (programme) params" in text
        assert f"the {words} experiment that this control has served: p (programme) is p (adj.) times {order} x" in text
        assert report.summary_markdown(table, plan).count("p (programme)") == 2
    shown = report.summary_markdown(table, plan).split("| same |")[1].split("|")
    assert shown[3].strip() != shown[4].strip() == "1.00"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "declared blocks 5"),
        ({"first_seed": 100}, "declared blocks 5 from seed 100"),
        ({"looks": (2, 3, 5)}, "looks after 2, 3, 5 blocks"),
        ({"independent": True}, "independent seeds 8 + 5"),
    ],
)
def test_the_headline_says_what_was_declared(fields, words):
    plan = design(arm("a", 5), arm("b", 5), control=8, **fields)
    values = np.random.default_rng(0).normal(size=(3, 8))
    runs = frame(dict(zip(("control", "a", "b"), (values[0], values[1][:5], values[2][:5]), strict=True)), plan)
    table = compare(runs, plan)
    text = report.table_text(table, plan)
    assert text.splitlines()[0].endswith(f" · {words}")
    assert ("as wide as" in text) is ("seed correlation" in text) is (not plan.independent)
    assert "floor" not in text  # there is no twin


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


def test_what_the_tracking_store_shows_is_text(table):
    wild = table.head(2).assign(why="one\ntwo | <img src=x onerror=alert(1)>")
    text = report.summary_markdown(wild, replace(PLAN, question="# <b>*?*</b>"))
    assert "<" not in text
    assert r"one two \| &lt;img" in text
    assert "\n\n# &lt;b&gt;\\*?\\*" in text


@pytest.mark.parametrize(
    ("p", "shown"), [(0.5, "0.50"), (0.0213, "0.021"), (0.00002, "2e-5"), (1e-9, "&lt;1e-6"), (math.nan, "")]
)
def test_p_is_short(table, p, shown):
    one = table[table["arm"] == "wide"].assign(p_adj=p)
    row = report.summary_markdown(pd.concat([table.head(1), one]), PLAN).split("| wide |")[1].split("|")
    assert row[3].strip() == shown


STAGES = ("report", "markdown", "table", "runs", "losses", "forest", "throughput")
WITHOUT_END = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser would make of the page: balanced tags, the texts by place, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[list[list[str]]] = []  # table, row, cell
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "iframe", "object", "base")
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "table":
            self.cells.append([])
        if tag == "tr":
            self.cells[-1].append([])
        if tag in ("td", "th"):
            self.cells[-1][-1].append("")
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.titles.append(data)


def stage(plan=PLAN, runs=None, curves=NO_CURVES):
    return Stage(design=plan, runs=runs, curves=curves)


def test_the_page_needs_nothing_else_and_has_everything_in_its_cells(runs, curves, table, tmp_path):
    files = report.write([stage(PLAN, runs, curves)], tmp_path, reproduce="make ablation EXP=x")
    text = files["report"].read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "@import" not in text
    assert "url(" not in text
    assert sum(address.startswith("data:image/svg+xml;base64,") for address in page.addresses) == 3
    heads, control, *others = page.cells[0]  # the verdict table comes first
    assert page.titles[:2] == ["width on tiny", "Losses"]
    assert heads[0] == "arm"
    assert control[0] == "control"
    for row, shown in zip(table.iloc[1:].to_dict("records"), others, strict=True):
        assert shown[0] == row["arm"]
        assert shown[3] == row["verdict"]
        if math.isfinite(row["ci_low"]):
            assert shown[2] == f"{row['delta']:+.4f} [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]"
    wide = table.set_index("arm").loc["wide"]
    for title, cell in (
        ("smallest effect", f"{wide['mde']:.4f}"),
        ("look", "3"),
        ("moderated sd (df)", f"{wide['sigma']:.4f} (12)"),
        ("own sd within blocks", f"{wide['own_sd']:.4f}"),
        ("seed correlation", f"{wide['correlation']:+.2f}"),
        ("as independent seeds", f"{wide['independent_half']:.4f}"),
    ):
        statistics = next(rows for rows in page.cells if title in rows[0])
        place = statistics[0].index(title)
        assert [row[place] for row in statistics[1:] if row[0] == "wide"] == [cell]
    seeds = next(rows for rows in page.cells if "MLflow run" in rows[0])
    assert len(seeds) == len(runs) + 1
    words = " ".join(page.texts)
    for said in (
        PLAN.question,
        "make ablation EXP=x",
        "bad seed",
        "the label shift is off",
        "1 of 3 declared runs",
        "d1",
        "0.1000 nats, with the weight of 10 degrees of freedom. Source: earlier experiments.",
    ):
        assert said in words
    assert "nan" not in words.replace("tenant", "")


def test_markdown_tells_what_changed_and_what_was_not_matched(runs, curves, table, tmp_path):
    text = report.write([stage(PLAN, runs, curves)], tmp_path)["markdown"].read_text(encoding="utf-8")
    assert PLAN.question in text
    assert "](losses.png)" in text
    assert "model.mlp.intermediate_size 256 → 512, model.head_dim 16 → 8 (solved to match)" in text
    assert "- **twin (check)**: train.init_perturbation 0.0 → 9.5367431640625e-07" in text
    assert "| wide | +10.00 % |" in text
    assert "contradicts the expectation (worse)" in text
    assert "nan" not in text
    words = set(table["verdict"]) - {""}
    assert words == {"as expected", "worse", "better", "equivalent", "undecided", "invalid"}
    assert all(word in text.split("## How to read the words")[1] for word in words)


@given(st.text(min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_whatever_a_question_says_it_stays_text(text):
    section = render.Section(text, [text, render.Table(("a", "b"), [(text, text)]), render.Items([(text, text)])])
    page = Page(render.page(text, [section, render.Section("code", [render.Code(text)])], {}))
    flat = "".join("".join(page.texts).split())
    assert flat.count("".join(text.split())) >= 7
    markdown = render.markdown(text, [section], {})
    assert "<" not in markdown.replace("\\<", "")
    assert all(line.count("|") - line.count("\\|") in (0, 3) for line in markdown.splitlines() if line.startswith("|"))


def test_two_stages_stand_apart(runs, curves, tmp_path):
    again = design(*(one for one in PLAN.arms if one.name == "wide"), confirms=True)
    fresh = frame({"control": [10.0, 10.2, 10.4, 10.6], "wide": [10.1, 10.35, 10.45]}, again)
    files = report.write([stage(PLAN, runs, curves), stage(again, fresh)], tmp_path)
    page = Page(files["report"].read_text(encoding="utf-8"))
    assert [title for title in page.titles if "declared" in title or "confirm" in title] == [
        "As declared",
        "To confirm, on fresh blocks",
    ]
    records = json.loads(files["table"].read_text())
    verdicts = {(record["stage"], record["arm"]): record["verdict"] for record in records}
    assert verdicts["declared", "wide"] == "better"
    assert verdicts["confirm", "wide"] == "equivalent"
    assert (tmp_path / "confirm-forest.png").exists()


def test_what_a_difference_is_worth_is_told_where_it_is_known(tmp_path):
    plan = design(arm("a", 3), arm("far", 3), arm("tokens_0.5x", 3, "budget", tokens=128_000), margin=0.01)
    values = {"control": [10.0, 10.2, 10.4, 10.6], "a": [11.7, 11.8, 11.9], "far": [30.0, 30.1, 30.2]}
    runs = frame(values | {"tokens_0.5x": [13.2, 13.3, 13.4]}, plan)
    table = compare(runs, plan)
    text = report.table_text(table, plan)
    assert "worth" in text.splitlines()[1]
    assert f"{100 * table.loc[1, 'worth']:+.0f} % data" in text
    assert "< -50.0 % data" in text
    assert max(map(len, text.splitlines())) <= 150
    page = Page(report.write([stage(plan, runs)], tmp_path)["report"].read_text(encoding="utf-8"))
    assert "What a difference is worth in data" in page.titles
    budgets = next(rows for rows in page.cells if rows[0][0] == "control on")
    assert budgets[1][:4] == ["0.5x", "128k", "3", "13.3000"]


def test_files_are_written_whole(runs, curves, table, tmp_path):
    files = report.write([stage(PLAN, runs, curves)], tmp_path / "new")
    assert tuple(files) == STAGES
    assert sorted((tmp_path / "new").iterdir()) == sorted(files.values())
    for name in ("losses", "forest", "throughput"):
        assert files[name].read_bytes().startswith(b"\x89PNG")
    records = json.loads(files["table"].read_text(), parse_constant=pytest.fail)
    assert [tuple(record) for record in records] == [("stage", *COLUMNS)] * len(table)
    assert records[3]["delta"] == table.loc[3, "delta"]
    assert records[-1]["mean"] is None
    stored = pd.read_csv(files["runs"])
    assert stored["final/val_loss"].tolist() == runs["final/val_loss"].tolist()
    again = report.write([stage(PLAN, runs, curves)], tmp_path / "again")
    assert again["report"].read_bytes() == files["report"].read_bytes()  # the same runs, the same page


def test_a_failure_leaves_the_old_files(runs, curves, tmp_path, monkeypatch):
    report.write([stage(PLAN, runs, curves)], tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_bytes

    def fail(self, content):
        write(self, content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write([stage(PLAN, runs, curves)], tmp_path)
    assert {file: file.read_bytes() for file in before} == before
