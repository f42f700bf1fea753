"""Results that are kept say what the store said, and the table of README comes out of them byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.report.figures import by_block
from analysis.report.results import insert, keep, read, results_markdown
from analysis.stats.compare import compare
from analysis.store.schema import TAG_DESIGN
from tests.analysis.tables import arm, change, design, frame

PLAN = design(arm("twin", 2, "check", expect="same"), arm("b", 3), arm("c", 3), confirms=False)
RUNS = frame({"control": [4.0, 4.1, 3.9, 4.0], "twin": [4.0, 4.05], "b": [4.4, 4.5, 4.6], "c": [4.0, 4.1]}, PLAN)


def test_what_is_kept_comes_back(tmp_path):
    runs = change(RUNS, "c-1", status="FAILED", reason="OutOfMemoryError", ended=pd.NaT, final__val_loss=float("nan"))
    file = keep(PLAN, runs, tmp_path / "results")
    assert file.name == "width-tiny.json"
    plan, back = read(file)
    assert plan == PLAN
    pd.testing.assert_frame_equal(compare(back, plan), compare(runs, PLAN))
    before = file.read_bytes()
    assert keep(plan, back, tmp_path / "results").read_bytes() == before


def test_the_table_has_every_variant_once_and_the_checks_once(tmp_path):
    files = [keep(PLAN, RUNS, tmp_path)]
    other = design(arm("twin", 2, "check", expect="same"), arm("d", 3), name="height", question="Does height | help?")
    runs = frame({"control": [4.0, 4.1, 3.9, 4.0], "twin": [4.0, 4.05], "d": [4.4, 4.5, 4.6]}, other)
    files.append(keep(other, runs, tmp_path))
    table = results_markdown(files)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["arm", "---", "twin", "*Does height \\| help?*", "d", "*Does width help?*", "b", "c"]
    assert "tok/s" not in table
    assert "p (programme)" not in table
    second = keep(replace(other, order=2), runs, tmp_path / "later")
    assert "| p (adj.) | p (programme) |" in (served := results_markdown([files[0], second]))
    assert len({line.count(" | ") for line in served.splitlines() if line.startswith("| ") and "\\|" not in line}) == 1
    assert len({line.count(" | ") for line in table.splitlines() if line.startswith("| ") and "\\|" not in line}) == 1


def test_other_files_and_other_bases_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json holds no results"):
        results_markdown([tmp_path / "x.json"])
    files = [
        keep(PLAN, RUNS, tmp_path),
        keep(design(arm("b", 3), base="large"), RUNS[RUNS["arm"] != "twin"][lambda r: r["arm"] != "c"], tmp_path),
    ]
    with pytest.raises(ValueError, match="results on 2 bases"):
        results_markdown(files)


def test_results_of_an_earlier_version_are_refused_in_words(tmp_path):
    record = json.loads(keep(PLAN, RUNS, tmp_path).read_text())
    head = json.loads(record["design"][TAG_DESIGN])
    record["design"][TAG_DESIGN] = json.dumps({k: v for k, v in head.items() if k != "looks"} | {"paired": False})
    (tmp_path / "old.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"old\.json holds no results that can be read: its design is of another version"
    ):
        results_markdown([tmp_path / "old.json"])


def test_a_table_goes_between_its_marks():
    assert insert("a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb", "new") == (
        "a\n<!-- results:begin -->\nnew\n<!-- results:end -->\nb"
    )
    with pytest.raises(ValueError, match="results:begin"):
        insert("a", "new")


def test_the_table_of_the_readme_comes_out_of_the_kept_results(root):
    """As `make results` writes it."""
    text = (root / "README.md").read_text()
    files = sorted((root / "experiments/results").glob("*-tiny.json"))
    assert len(files) >= 5
    assert insert(text, results_markdown(files)) == text


def test_what_is_kept_was_made_in_one_stratum_in_whole_blocks(root):
    for file in (root / "experiments/results").glob("*-tiny.json"):
        plan, runs = read(file)
        assert runs["data"].nunique() == 1
        assert not compare(runs, plan)["verdict"].eq("invalid").any()  # as runs of several strata are
        assert runs["status"].eq("FINISHED").all()
        if not plan.independent:
            assert (by_block(runs, plan)["block"] == runs["seed"] - plan.first_seed).all()
        assert json.loads(Path(file).read_text())["runs"]
