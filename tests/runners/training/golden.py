"""The golden suite: a few steps of every registered block and component, to the last digit.

``python -m tests.runners.training.golden FILE`` writes this checkout's losses and the digests of the code behind them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama_variants.meaning import digest
from runners.data.shards import prepare
from runners.planning.bases import load_base
from runners.planning.components import COMPONENTS
from runners.planning.delta import merge
from runners.planning.files import Delta
from runners.planning.recipe import Recipe
from runners.runs.folder import RunFolder
from runners.runs.machine import platform_tag
from runners.runs.stratum import executed
from tests.llama_variants.models import EVERY_MODEL, TINY
from tests.runners.conftest import write_project
from tests.runners.helpers import CPU, changed, trained_rows

STEPS, SEED, SEEDS = 12, 5, range(10, 18)
CONTROL = "control"
# One recipe for each model of every block, and one for each optimizer and schedule.
PARTS: Mapping[str, Delta] = {
    f"{family}={name}": Delta(train={family: {"type": name}})
    for family in ("optimizer", "schedule")
    for name in COMPONENTS[family]
}
NAMES = (CONTROL, *EVERY_MODEL, *PARTS)


class Suite:
    """Trains for a few steps, on one thread, through everything that a real run goes through.

    Args:
        folder: an empty one; text and runs go there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = write_project(folder)
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            _, recipe = load_base(Path("experiments/base/micro.yaml"))
            self.corpus = prepare(recipe.data, Path("cache"))
        finally:
            os.chdir(before)
        model = TINY.override({"vocab_size": 300})
        self.control = replace(recipe, model=model, train=changed(recipe.train, num_steps=STEPS))

    def recipe(self, name: str) -> Recipe:
        """One of ``NAMES``."""
        if name in PARTS:
            recipe, problems = merge(self.control, PARTS[name])
            assert recipe, problems
            return recipe
        return self.control.with_model(EVERY_MODEL.get(name, TINY).override({"vocab_size": 300}))

    def losses(self, name: str, seed: int = SEED, device: torch.device = CPU) -> list[float]:
        """The training loss of each step, and the final validation loss."""
        run = RunFolder(self.folder / "runs", f"{len(list(self.folder.glob('runs/*')))}")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = [row["metrics"] for row in trained_rows(self.recipe(name), seed, self.corpus, run, device=device)]
        torch.set_num_threads(threads)
        return [row["train/loss"] for row in rows] + [rows[-1]["final/val_loss"]]

    def code(self, name: str) -> dict[str, str]:
        """The digest of each part of the code that one of ``NAMES`` executes."""
        return {part: digest(meaning) for part, meaning in executed(self.recipe(name)).items()}


def record() -> dict[str, Any]:
    """This checkout's losses and code, on this platform."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder))
        losses = {}
        for i, name in enumerate(NAMES, start=1):
            print(f"\r{i}/{len(NAMES)} {name:<40}", end="", file=sys.stderr, flush=True)
            losses[name] = suite.losses(name)
        print(file=sys.stderr)
        code = {name: suite.code(name) for name in NAMES}
        return {"platform": platform_tag(torch.device("cpu")), "losses": losses, "code": code}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(record()))
