"""How far a model is from what a task allows, and whether it solves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from analysis.store.schema import METRICS, Metric
from llama_variants.errors import ConfigError, Problem
from runners.data.synthetic import SyntheticSource, floor_nats
from runners.evaluation.subject import Subject
from runners.evaluation.tokens import token_hits, token_losses
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("task")
class TaskProbe:
    """The loss on a task's text less its entropy, and the loss and the share of hits where the answer is certain.

    ``val/task_excess_loss`` is exact but for the choice of validation documents, whose own mean surprisal is not the
    entropy's to the last digit. ``val/task_accuracy`` and ``val/task_answer_loss``: see ``answers`` of each task in
    :mod:`runners.data.synthetic`; not there for a task without.
    """

    class Config(ProbeConfig):
        """No fields."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        key: METRICS[key] for key in ("val/task_excess_loss", "val/task_answer_loss", "val/task_accuracy")
    }

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The distance to the floor, and how answers are predicted. Raises ConfigError on other text."""
        declared = subject.corpus.manifest["identity"]["source"]
        if declared["type"] != "synthetic":
            received = f"a text of type {declared['type']}"
            raise ConfigError([Problem(path=("probes", "task"), received=received, allowed="type synthetic")])
        task = SyntheticSource.model_validate({"train": 1, **declared}).task
        offsets = np.load(subject.corpus.folder / "validation.offsets.npy")
        seq_len, fits = subject.recipe.train.seq_len, task.length + 1
        if seq_len != fits or (np.diff(offsets) != fits).any():
            received = f"windows of {seq_len} tokens, and documents of {np.diff(offsets).max()} with their end"
            raise ConfigError([Problem(path=("probes", "task"), received=received, allowed=f"{fits} for both")])
        windows = subject.corpus.validation.windows(subject.num_windows, subject.recipe.train.seq_len)
        losses = token_losses(subject, windows).double()  # (n, length): the last predicts the end
        found = {"val/task_excess_loss": float(losses.mean()) - floor_nats(task)}
        certain = torch.from_numpy(task.answers())[1:]
        if certain.any():
            hits = token_hits(subject, windows)[:, :-1][:, certain]
            answers = losses[:, :-1][:, certain]
            found |= {"val/task_answer_loss": float(answers.mean()), "val/task_accuracy": float(hits.double().mean())}
        return found
