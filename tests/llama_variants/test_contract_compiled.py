"""Compiled in one graph, exported and traced, the models compute what is written; the cases are in compiled.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.llama_variants.compiled import CASES
from tests.llama_variants.subjects import OURS

FEW = ["padded-variant", "packed-variant", "traced-variant", "window_by_block-windows", "documents_by_block-windows"]


def check(cases: list[str]) -> None:
    command = [sys.executable, "-m", "tests.llama_variants.compiled", *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(cases, "same")


def test_padded_packed_and_windowed_batches_take_no_branch():
    check(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("subject", OURS)
def test_compiled_exported_and_traced(subject):
    check([f"{case}-{subject}" for case in CASES])
