"""The loss of each window of a run's first batch: shows data, initial values and forward pass at full size, cheaply.

A file keeps these losses for each platform on which they were computed, in float32 on a processor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.agreement import scatter_band
from llama_variants import build_model
from llama_variants.errors import ConfigError, Problem
from runners.data import Corpus
from runners.determinism import platform_tag
from runners.evaluate import evaluate
from runners.experiment import PlannedRun
from runners.log_compare import Outcome, Row
from runners.recipe import Recipe
from runners.same_run import check_comparable, check_same_data
from runners.store import write_atomically


def first_batch_losses(recipe: Recipe, seed: int, corpus: Corpus, rows: Sequence[int]) -> list[float]:
    """Loss of each of these windows of the run's first batch, by the model as initialised, in float32 on the CPU."""
    config = recipe.train
    model = build_model(recipe.model, seed=seed)
    batch = corpus.train.batch(0, seed=seed, batch_size=config.batch_size, seq_len=config.seq_len)
    losses = evaluate(model, batch[list(rows)], batch_size=1, precision="float32").windows
    return [float(loss) for loss in losses]


def first_batch_recipe(recipe: Recipe, seed: int) -> dict[str, Any]:
    """The part of a run's identity that its first batch's losses depend on."""
    identity = recipe.identity()
    train = {name: identity["train"][name] for name in ("seq_len", "tokens_per_step")}
    return json.loads(json.dumps({**identity, "train": train, "eval": {}, "seed": seed}))


def write_first_batch(file: Path, run: PlannedRun, title: str, command: str, corpus: Corpus) -> None:
    """Compute all windows of the first batch and enter them into ``file`` under this platform.

    Raises ConfigError where the file holds those of another run.
    """
    recipe = first_batch_recipe(run.recipe, run.seed)
    record: dict[str, Any] = {
        "run": title,
        "command": command,
        "data": corpus.fingerprint,
        "recipe": recipe,
        "losses": {},
    }
    if file.exists():
        record = read_first_batch(file)
        check_comparable(file, record["recipe"], recipe)
        check_same_data(file, record["data"], corpus)
    losses = first_batch_losses(run.recipe, run.seed, corpus, range(run.recipe.train.batch_size))
    record["losses"][platform_tag(torch.device("cpu"))] = losses
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1) + "\n")


def read_first_batch(file: Path) -> dict[str, Any]:
    """What :func:`write_first_batch` wrote. Raises ConfigError for anything else."""
    try:
        record = json.loads(file.read_text())
        if {"run", "command", "data", "recipe", "losses"} <= record.keys() and record["losses"]:
            return dict(record)
        said = f"{file}, without command, data, recipe and losses"
    except (OSError, ValueError, AttributeError) as error:
        said = f"{file}: {error}"
    raise ConfigError([Problem(("LOG",), said, "what `python -m runners log … --first-batch --out FILE` wrote")])


def hold_first_batch(file: Path, record: Mapping[str, Any], rows: Sequence[int], here: Sequence[float]) -> Outcome:
    """Hold the losses of some windows against the record: to the last digit where it has this platform."""
    platform = platform_tag(torch.device("cpu"))
    known = {name: np.array(losses) for name, losses in record["losses"].items()}
    exact = platform in known
    there = known.get(platform, next(iter(known.values())))
    if exact:
        basis, allowed = "to the last digit", np.zeros(len(there))
    elif len(known) > 1:
        basis = f"the scatter of {len(known)} other platforms"
        allowed = scatter_band(np.array(list(known.values())), independent=True)
    else:
        raise ConfigError(
            [Problem(("LOG",), f"{file}, of another platform than {platform}", "this one, or two others")]
        )
    made = []
    for row, loss in zip(rows, here, strict=True):
        gap = abs(loss - there[row])
        text = f"{there[row]!r} in the record, {loss!r} computed again" if not gap <= allowed[row] else ""
        made.append(Row(row, "window", float(there[row]), loss, float(allowed[row]), text))
    unchecked = tuple(row for row in range(len(there)) if row not in rows)
    return Outcome(file, exact, basis, tuple(made), unchecked)
