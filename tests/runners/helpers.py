"""What the tests of several folders share: how a run ended, to the last bit, and runs carried out in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.store.stratum import Stratum
from runners.cli import main
from runners.data.batches import Corpus
from runners.data.config import file_sha256
from runners.execution.journal import Journal
from runners.execution.one_run import RunOptions, execute
from runners.planning.components import OPTIMIZER
from runners.planning.recipe import Recipe, TrainConfig, read_train
from runners.runs.checkpoint import Checkpoint, Checkpoints
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from runners.training.loop import train
from runners.training.optimizers.base import RecipeOptimizer
from runners.training.state import Training
from tests.runners import children
from tests.runners.children import new_run

CLOCK = ("throughput/", "memory/", "final/tokens_per_s", "final/peak_memory_bytes", "final/wall_time_s")

CPU = torch.device("cpu")

WATCH = """
import atexit, pathlib, runpy, sys
file = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: file.write_text("\\n".join(sys.modules)))
runpy.run_module("runners", run_name="__main__", alter_sys=True)
"""

TRAIN, _ = read_train(
    {
        "seq_len": 4,
        "tokens_per_step": 8,
        "num_steps": 100,
        "lr": 0.5,
        "optimizer": {"type": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedule": {"type": "wsd", "warmup_steps": 10, "decay_fraction": 0.2},
        "max_grad_norm": 1.0,
        "precision": "float32",
        "deterministic": False,
    }
)
assert TRAIN is not None


def optimizer_of(model: nn.Module, config: TrainConfig) -> RecipeOptimizer:
    """The recipe's optimizer of a model, at its peak rate."""
    optimizer: RecipeOptimizer = OPTIMIZER[config.optimizer.type](config.optimizer, model)
    optimizer.set_lr(config.lr)
    return optimizer


def changed(config: TrainConfig, **changes: object) -> TrainConfig:
    """A recipe with other values; those of its optimizer and its schedule are found by their names."""
    parts = {part: getattr(config, part) for part in ("optimizer", "schedule")}
    update: dict[str, object] = {}
    for name, value in changes.items():
        part = next((part for part, fields in parts.items() if name in type(fields).model_fields), None)
        if part:
            parts[part] = update[part] = parts[part].model_copy(update={name: value})
        else:
            update[name] = value
    return config.model_copy(update=update)


def trained_rows(
    recipe: Recipe,
    seed: int,
    corpus: Corpus,
    run: RunFolder,
    *,
    on_step: Callable[[Training], None] = lambda training: None,
    stop: StopRequest | None = None,
    checkpoint: Checkpoint | None = None,
    device: torch.device = CPU,
) -> list[dict[str, Any]]:
    """Train in this process, by default on one thread's CPU, and not compiled, with all that a real run logs and saves.

    Returns what it logged, by step.
    """
    run.create(recipe, seed)
    run.begin(Stratum(device="here"), {}, "", checkpoint.state["log_bytes"] if checkpoint else 0)
    with Checkpoints(run, 1000, run.say) as checkpoints:
        journal = Journal(run, recipe, checkpoints, stop or StopRequest(), on_step=on_step)
        train(recipe, seed, corpus, device, journal, say=run.say, compile_mode="off", checkpoint=checkpoint)
    return run.rows()[0]


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
    execute(run, Path("cache"), "cpu", RunOptions(stop_after=stop_after), StopRequest())
    return run


def start_main(project: Path, *arguments: object, **environment: str) -> BaseProcess:
    """A command in a process of its own that has torch loaded already, so that ten at once do begin at once."""
    child = children._server.Process(target=_main, args=(project, list(map(str, arguments)), environment))
    child.start()
    return child


def _main(project: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.chdir(project)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ |= environment
    sys.exit(main(arguments))
