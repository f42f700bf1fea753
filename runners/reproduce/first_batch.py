"""The loss of each window of a run's first batch: shows data, initial values and forward pass at full size, cheaply.

A file keeps these losses for each platform on which they were computed, in float32 on a processor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.stats.agreement import scatter_band
from llama_variants import build_model
from llama_variants.errors import ConfigError, Problem, StrictModel, check
from runners.data.atomic import write_atomically
from runners.data.batches import Corpus
from runners.planning.arms import PlannedRun
from runners.planning.recipe import Recipe
from runners.reproduce.log_compare import Outcome, Row
from runners.reproduce.same_run import check_comparable, check_same_data
from runners.runs.machine import platform_tag
from runners.training.loss import evaluate

FAR = 1e-3  # nats: rounding in float32 is a thousandth of it


class FirstBatch(StrictModel):
    """The record: what was computed, and the losses of all windows by the platform on which they were."""

    run: str
    command: str
    data: str
    recipe: dict[str, Any]
    losses: dict[str, list[float]]


def first_batch_losses(recipe: Recipe, seed: int, corpus: Corpus, rows: Sequence[int]) -> list[float]:
    """Loss of each of these windows of the run's first batch, by the model as initialised, in float32 on the CPU."""
    config = recipe.train
    model = build_model(recipe.model, seed=seed)
    batch = corpus.train.batch(0, seed=seed, batch_size=config.batch_size, seq_len=config.seq_len)
    losses = evaluate(model, batch[list(rows)], batch_size=1, precision="float32").windows
    return [float(loss) for loss in losses]


UPDATES = ("optimizer.", "schedule.")  # parts of a recipe that no loss before the first update depends on


def first_batch_recipe(recipe: Recipe, seed: int) -> dict[str, Any]:
    """The part of a run's identity that its first batch's losses depend on."""
    identity = recipe.identity()
    train = {name: identity["train"][name] for name in ("seq_len", "tokens_per_step")}
    semantics = {name: version for name, version in identity["semantics"].items() if not name.startswith(UPDATES)}
    return json.loads(json.dumps({**identity, "train": train, "eval": {}, "semantics": semantics, "seed": seed}))


def write_first_batch(file: Path, run: PlannedRun, title: str, command: str, corpus: Corpus) -> None:
    """Compute all windows of the first batch and enter them into ``file`` under this platform.

    Raises ConfigError where the file holds those of another run.
    """
    recipe = first_batch_recipe(run.recipe, run.seed)
    losses_of: dict[str, list[float]] = {}
    if file.exists():
        there = read_first_batch(file)
        check_comparable(file, there.recipe, recipe)
        check_same_data(file, there.data, corpus)
        losses_of = dict(there.losses)
    losses = first_batch_losses(run.recipe, run.seed, corpus, range(run.recipe.train.batch_size))
    losses_of[platform_tag(torch.device("cpu"))] = losses
    record = FirstBatch(run=title, command=command, data=corpus.fingerprint, recipe=recipe, losses=losses_of)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record.model_dump(), indent=1) + "\n")


def read_first_batch(file: Path) -> FirstBatch:
    """What :func:`write_first_batch` wrote. Raises ConfigError for anything else."""
    try:
        record, problems = check(FirstBatch, json.loads(file.read_text()))
        said = f"{file}: {problems[0].received}" if problems else ""
    except (OSError, ValueError) as error:
        record, said = None, f"{file}: {error}"
    if record is None or said:
        problem = Problem(
            path=("LOG",), received=said, allowed="what `python -m runners log … --first-batch --out FILE` wrote"
        )
        raise ConfigError([problem])
    counts = {len(values) for values in record.losses.values()}
    losses = np.array(list(record.losses.values())) if len(counts) == 1 else np.zeros((0, 0))
    if not losses.size or not np.ptp(losses, axis=0).max() <= FAR:
        said = f"{file}, whose losses are none, not as many for each platform, or more than {FAR:g} apart"
        problem = Problem(path=("LOG",), received=said, allowed="losses of one batch, which differ by rounding")
        raise ConfigError([problem])
    return record


def check_can_hold(file: Path, record: FirstBatch) -> None:
    """Raises ConfigError where the record says nothing about losses that are computed here."""
    platform = platform_tag(torch.device("cpu"))
    if platform not in record.losses and len(record.losses) < 2:
        allowed = "a record of this platform, or of two others"
        raise ConfigError([Problem(path=("LOG",), received=f"{file}, not of {platform}", allowed=allowed)])


def hold_first_batch(file: Path, record: FirstBatch, rows: Sequence[int], here: Sequence[float]) -> Outcome:
    """Hold the losses of some windows against the record: to the last digit where it has this platform."""
    platform = platform_tag(torch.device("cpu"))
    exact = platform in record.losses
    there = record.losses[platform] if exact else next(iter(record.losses.values()))
    basis, allowed = "to the last digit", np.zeros(len(there))
    if not exact:
        basis = f"the scatter of {len(record.losses)} other platforms"
        allowed = scatter_band(np.array(list(record.losses.values())), independent=True)
    made = []
    for row, loss in zip(rows, here, strict=True):
        agrees = abs(loss - there[row]) <= allowed[row]
        text = "" if agrees else f"{there[row]!r} in the record, {loss!r} computed again"
        made.append(Row(step=row, kind="window", there=there[row], here=loss, allowed=float(allowed[row]), text=text))
    left = [str(row) for row in range(len(there)) if row not in rows]
    told = (f"windows {', '.join(left)} ({len(left)})",) if left else ()
    return Outcome(file=file, exact=exact, basis=basis, rows=tuple(made), unchecked=told)
