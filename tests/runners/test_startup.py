"""Nothing heavy is imported before it is needed: which modules a fresh process holds when a command is over."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.runners.conftest import clean_environment
from tests.runners.helpers import WATCH

HEAVY = ("torch", "transformers", "numpy", "scipy", "pandas", "mlflow", "matplotlib", "datasets", "tokenizers")
NOT_FOR_A_PLAN = ("scipy.stats", "pandas", "mlflow", "matplotlib", "datasets")
HEAD = "name: mine\nversion: 1\nquestion: Does it matter?\n"


@pytest.fixture
def imported(tmp_path):
    """Of ``python -m runners`` in a fresh process: exit code, what it said on stderr, and its modules at the end."""

    def run(*arguments: str) -> tuple[int, str, set[str]]:
        file = tmp_path / "modules"
        command = [sys.executable, "-c", WATCH, str(file), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
        return done.returncode, done.stderr, set(file.read_text().split())

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--help",), 0, ""),
        (("plan", "--help"), 0, ""),
        (("run", "--help"), 0, ""),
        (("plna",), 2, "did you mean 'plan'?"),
        (("rnu", "experiments/demo.yaml"), 2, "did you mean 'run'?"),
        (("plan", "experiments/demo.yaml", "--sedes", "3"), 2, "did you mean '--seeds'?"),
        (("run", "experiments/demo.yaml", "--compile", "onn"), 2, "did you mean 'on'?"),
        (("zzz",), 2, "invalid choice: 'zzz'"),
    ],
)
def test_help_and_a_misspelt_verb_need_the_standard_library_alone(imported, arguments, code, says):
    ended, errors, modules = imported(*arguments)
    assert ended == code
    assert says in errors
    assert not modules & {*HEAVY, "pydantic", "yaml", "rich", "filelock"}


@pytest.mark.parametrize("verb", ["plan", "run", "report"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("name: [", "one well-formed YAML document"),
        (HEAD + "base: tiyn\n", "did you mean 'tiny'?"),
        (HEAD + "base: tiny\nvarants: {}\n", "did you mean 'variants'?"),
    ],
)
def test_a_file_that_needs_no_model_to_be_refused_loads_none(imported, tmp_path, verb, text, says):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    code, errors, modules = imported(verb, str(file))
    assert code == 2
    assert says in errors
    assert not modules & set(HEAVY)


def test_all_problems_of_a_head_are_told_at_once(imported, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + "base: tiny\nexpcet: {}\nexpect: {mqa: same}\nconfirm: {variants: [mha]}\n")
    code, errors, _ = imported("plan", str(file))
    assert code == 2
    for said in ("'expcet'", "unknown variant 'mqa'", "unknown variant 'mha'", "3 problems, nothing was run"):
        assert said in errors


def test_with_variants_their_problems_are_told_beside_the_head_s(imported, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + "base: tiny\nexpcet: {}\nvariants: {one: {model: {atention: {type: mqa}}}}\n")
    code, errors, _ = imported("plan", str(file))
    assert code == 2
    assert "'expcet'" in errors
    assert "did you mean 'attention'" in errors


@pytest.mark.parametrize(
    "arguments",
    [("plan", "experiments/demo.yaml"), ("blocks",), ("model", "--set", "head.type=untied")],
    ids=lambda arguments: arguments[0],
)
def test_what_only_counts_needs_no_statistics_and_no_store(imported, arguments):
    code, errors, modules = imported(*arguments)
    assert code == 0, errors
    assert not modules & set(NOT_FOR_A_PLAN)


@pytest.mark.parametrize(
    "arguments", [("plan", "experiments/demo.yaml"), ("blocks",), ("model",)], ids=lambda arguments: arguments[0]
)
def test_what_builds_no_model_needs_no_transformers(imported, arguments):
    assert "transformers" not in imported(*arguments)[2]
