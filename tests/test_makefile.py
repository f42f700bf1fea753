"""What make hands to the commands: names with spaces, and a switch that JupyterLab needs where the user is root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SAYS = f"#!{sys.executable}\nimport json, sys\nprint('words', json.dumps(sys.argv[1:]))\n"


@pytest.fixture
def make(tmp_path):
    """Runs a target whose programs only say how they were called: the words of each call."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "jupyter", "mlflow"):
        (programs / name).write_text(SAYS)
        (programs / name).chmod(0o755)

    def run(target: str, *variables: str, path: Path | None = None) -> list[list[str]]:
        environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(
            ["make", target, *variables, "-o", ".venv/.ready"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("words ")]

    return run


@pytest.mark.parametrize("name", ["experiments/my question.yaml", "it's.yaml", 'a "b" & c; d.yaml', "tab\there *.yaml"])
@pytest.mark.parametrize("target", ["plan", "power", "ablation", "report"])
def test_a_file_s_name_is_one_word(make, target, name):
    (words,) = make(target, f"EXP={name}", "BASE=my base", "SEEDS=2", "ARGS=--json --fresh")
    verb = {"ablation": "run"}.get(target, target)
    notebooks = ["--notebooks"] if target == "report" else []
    given = ["--base", "my base", "--seeds", "2", "--json", "--fresh"]
    assert words == ["-m", "runners", verb, name, *notebooks, *given]


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_jupyter_is_allowed_to_root_where_the_user_is_root(make, tmp_path, user, allowed):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    (words,) = make("notebooks", path=tmp_path)
    assert ("--allow-root" in words) == allowed
    assert words[:3] == ["lab", "--ip", "127.0.0.1"]
