"""Losses of every registered block to the last digit, one file for each platform under tests/golden/.

On a platform that has a file, a change of the code must give the very same losses. Elsewhere they must lie within six
standard deviations over seeds. Where losses are meant to change, raise the `semantics` of what changed, and then
`make test WORKERS= ARGS="tests/runners/training/test_golden.py --write-golden"`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_variants import ModelConfig
from runners.data import prepare
from runners.planning.bases import load_base
from runners.runs.folder import RunFolder
from runners.runs.machine import platform_tag
from tests.conftest import ROOT
from tests.llama_variants.models import EVERY_MODEL, TINY
from tests.runners.helpers import changed, trained_rows

GOLDEN = ROOT / "tests/golden"
STEPS, SEED, SEEDS = 12, 5, range(10, 18)
CONTROL = "control"


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> Callable[[ModelConfig, int], list[float]]:
    """Trains for a few steps, on one thread, through everything that a real run goes through."""
    from tests.runners.conftest import write_project

    folder = write_project(tmp_path_factory.mktemp("golden"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = load_base(Path("experiments/base/micro.yaml"))[1]
        corpus = prepare(recipe.data, Path("cache"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)

        def trained(model: ModelConfig, seed: int = SEED) -> list[float]:
            own = replace(
                recipe, model=model.override({"vocab_size": 300}), train=changed(recipe.train, num_steps=STEPS)
            )
            run = RunFolder(folder / "runs", f"{len(list(folder.glob('runs/*')))}")
            rows = [row["metrics"] for row in trained_rows(own, seed, corpus, run)]
            return [row["train/loss"] for row in rows] + [rows[-1]["final/val_loss"]]

        yield trained
        torch.set_num_threads(threads)


MODELS = {CONTROL: TINY} | EVERY_MODEL


@pytest.fixture(scope="module")
def golden(request, losses) -> dict:
    file = GOLDEN / f"{platform_tag(torch.device('cpu'))}.json"
    if request.config.getoption("--write-golden"):
        over_seeds = list(zip(*[losses(TINY, seed) for seed in SEEDS], strict=True))
        record = {
            "seed_sd": [statistics.stdev(values) for values in over_seeds],
            "losses": {name: losses(model, SEED) for name, model in MODELS.items()},
        }
        GOLDEN.mkdir(exist_ok=True)
        lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in record["losses"].items()]
        text = f'{{"seed_sd": {json.dumps(record["seed_sd"])},\n "losses": {{\n' + ",\n".join(lines) + "\n}}\n"
        file.write_text(text)
    files = [file] if file.exists() else sorted(GOLDEN.glob("*.json"))
    return json.loads(files[0].read_text()) | {"exact": file.exists()}


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_golden_ones(golden, losses, name):
    if name not in golden["losses"]:  # of a plugin
        pytest.skip("a block of a plugin; golden files hold this project's own")
    expected, found = golden["losses"][name], losses(MODELS[name], SEED)
    if golden["exact"]:
        assert found == expected
    for a, b, sd in zip(found, expected, golden["seed_sd"], strict=True):
        assert abs(a - b) <= 6 * sd


def test_every_block_of_this_project_has_golden_losses(golden):
    """With no file for this platform too: a new block comes with its losses."""
    import os

    missing = MODELS.keys() - golden["losses"].keys()
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
