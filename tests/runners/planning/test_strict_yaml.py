"""YAML without coercion, with lines."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llama_variants.errors import ConfigError, Problem
from runners.planning.strict_yaml import Document, load

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


def read(text: str, folder: Path) -> Document:
    file = folder / "x.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file)


@given(data=st.dictionaries(st.text("abc", min_size=1), PLAIN))
def test_reads_what_a_safe_dump_writes(data, tmp_path_factory):
    document = read(yaml.safe_dump(data), tmp_path_factory.mktemp("yaml"))
    assert document.problems == []
    assert document.data == data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3e4", 30000.0),
        ("-2.5E+1", -25.0),
        (".5", 0.5),
        ("7", 7),
        ("49_152", 49152),
        ("true", True),
        ("null", None),
        ("~", None),
        ("8/3", "8/3"),
        # Values that YAML 1.1 would turn into something else.
        ("012", "012"),
        ("01.5", "01.5"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        (".inf", ".inf"),
        ("'3'", "3"),
        ('"true"', "true"),
    ],
)
def test_scalars(text, value, tmp_path):
    got = read(f"a: {text}\n", tmp_path).data["a"]
    assert got == value
    assert type(got) is type(value)


def test_duplicate_keys_keep_the_first_and_name_both_lines(tmp_path):
    document = read("a: 1\nb:\n  c: 2\n  c: 3\na: 4\n", tmp_path)
    assert document.data == {"a": 1, "b": {"c": 2}}
    located = [str(document.locate(problem)) for problem in document.problems]
    assert len(located) == 2
    assert "x.yaml:4: b.c: received the key 'c' a second time (first on line 3)" in located[0]
    assert "x.yaml:5: a: received the key 'a' a second time (first on line 1)" in located[1]


def test_a_problem_is_placed_at_its_line_or_at_what_encloses_it(tmp_path):
    document = read("a:\n  - x\n  - b: 1\n    c: 2\n", tmp_path)
    assert document.locate(Problem(path=("a", 1, "c"), received="", allowed="")).where.endswith("x.yaml:4")
    assert document.locate(Problem(path=("a", 1, "missing"), received="", allowed="")).where.endswith("x.yaml:3")
    assert document.locate(Problem(path=("nowhere",), received="", allowed="")).where.endswith("x.yaml:1")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",  # not closed
        "a: 1\n---\nb: 2",  # two documents
        "a: &x [*x]",  # an alias inside itself
        "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),  # 10^9 values
    ],
)
def test_unreadable_files_end_in_one_error(text, tmp_path):
    with pytest.raises(ConfigError):
        read(text, tmp_path)


def test_nothing_is_executed(tmp_path):
    marker = tmp_path / "executed"
    document = read(f"a: !!python/object/apply:os.mkdir ['{marker}']\nb: !custom 3\n", tmp_path)
    assert [problem.path for problem in document.problems] == [("a",), ("b",)]
    assert not marker.exists()


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "binary.yaml")


def test_floats_keep_every_digit(tmp_path):
    assert read("a: 0.041666666666666664", tmp_path).data["a"] == 1 / 24
    assert math.isclose(read("a: 1e-5", tmp_path).data["a"], 1e-5, rel_tol=0)
