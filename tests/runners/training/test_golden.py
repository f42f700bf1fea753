"""Losses of every registered block and component to the last digit, one file for each platform under tests/golden/.

On a platform that has a file, a change of the code must give the very same losses. Elsewhere they must lie within six
standard deviations over seeds. Where losses are meant to change, raise the `semantics` of what changed, and then
`make test WORKERS= ARGS="tests/runners/training/test_golden.py --write-golden"`.
"""

from __future__ import annotations

import json
import os
import statistics

import pytest
import torch

from runners.runs.machine import platform_tag
from tests.conftest import ROOT
from tests.runners.training.golden import CONTROL, NAMES, SEEDS, Suite

GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return Suite(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def golden(request, suite) -> dict:
    file = GOLDEN / f"{platform_tag(torch.device('cpu'))}.json"
    if request.config.getoption("--write-golden"):
        over_seeds = list(zip(*[suite.losses(CONTROL, seed) for seed in SEEDS], strict=True))
        record = {
            "seed_sd": [statistics.stdev(values) for values in over_seeds],
            "losses": {name: suite.losses(name) for name in NAMES},
        }
        GOLDEN.mkdir(exist_ok=True)
        lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in record["losses"].items()]
        text = f'{{"seed_sd": {json.dumps(record["seed_sd"])},\n "losses": {{\n' + ",\n".join(lines) + "\n}}\n"
        file.write_text(text)
    files = [file] if file.exists() else sorted(GOLDEN.glob("cpu-*.json"))
    return json.loads(files[0].read_text()) | {"exact": file.exists()}


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_the_golden_ones(golden, suite, name):
    if name not in golden["losses"]:  # of a plugin
        pytest.skip("a block of a plugin; golden files hold this project's own")
    expected, found = golden["losses"][name], suite.losses(name)
    if golden["exact"]:
        assert found == expected
    for a, b, sd in zip(found, expected, golden["seed_sd"], strict=True):
        assert abs(a - b) <= 6 * sd


def test_every_block_and_component_of_this_project_has_golden_losses(golden):
    """With no file for this platform too: a new block comes with its losses."""
    missing = set(NAMES) - golden["losses"].keys()
    assert not missing or os.environ.get("PLUGINS"), f"write them: {missing}"


def test_six_sd_are_tighter_than_the_effects_that_they_guard_against(golden):
    """A check that cannot fail is none: most blocks' losses lie further from the control's than their tolerance."""
    control, sd = golden["losses"][CONTROL], golden["seed_sd"]
    seen = [
        any(abs(a - b) > 6 * s for a, b, s in zip(values, control, sd, strict=True))
        for name, values in golden["losses"].items()
        if values != control
    ]
    assert all(s > 0 for s in sd)
    assert sum(seen) >= 3
