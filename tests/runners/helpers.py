"""What the tests of several folders share: how a run ended, to the last bit, and runs carried out in this process."""

from __future__ import annotations

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from runners.cli import main
from runners.data.config import file_sha256
from runners.execution.one_run import Options, execute
from runners.planning.recipe import Recipe, TrainConfig
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from tests.runners import children
from tests.runners.children import new_run

CLOCK = ("throughput/", "memory/", "final/tokens_per_s", "final/peak_memory_bytes", "final/wall_time_s")

TRAIN = TrainConfig(
    seq_len=4,
    tokens_per_step=8,
    num_steps=100,
    lr=0.5,
    warmup_steps=10,
    decay_fraction=0.2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    max_grad_norm=1.0,
    precision="float32",
    deterministic=False,
)


def exact(run: RunFolder) -> list[Any]:
    """All that a run logged but times and memory, with every digit; and the digest of its weights."""
    rows = [
        (row["step"], {key: value for key, value in row["metrics"].items() if not key.startswith(CLOCK)})
        for row in run.rows()[0]
    ]
    return [*rows, file_sha256(run.final / "model.safetensors")]


def carried_out(recipe: Recipe, root: str = "runs", stop_after: int | None = None) -> RunFolder:
    """The run of a recipe in the current folder, trained in this process."""
    run = new_run(Path(), recipe, root=root)
    execute(run, Path("cache"), "cpu", Options(stop_after=stop_after), StopRequest())
    return run


def start_main(project: Path, *arguments: object) -> BaseProcess:
    """A command in a process of its own that has torch loaded already, so that ten at once do begin at once."""
    child = children._server.Process(target=_main, args=(project, list(map(str, arguments))))
    child.start()
    return child


def _main(project: Path, arguments: list[str]) -> None:
    os.chdir(project)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.exit(main(arguments))
