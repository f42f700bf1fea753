"""The probe of tasks: a model that knows the task is at its floor, one that guesses is where guessing is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llama_variants import build_model
from llama_variants.errors import ConfigError
from runners.data import prepare
from runners.data.config import DataConfig
from runners.evaluation.subject import Subject
from runners.evaluation.task import TaskProbe
from runners.planning.bases import load_base
from tests.conftest import ROOT

DISTANCE, ALPHABET, LENGTH = 5, 9, 16
COPY = {
    "source": {
        "type": "synthetic",
        "task": {"type": "copy", "alphabet": ALPHABET, "distance": DISTANCE, "length": LENGTH},
        "train": 50,
        "validation": 40,
    },
    "tokenizer": {"type": "numbers", "vocab_size": ALPHABET + 1},
}
PROBE = TaskProbe(TaskProbe.Config())


class Knows(nn.Module):
    """The best predictor of the copy task; ``wrong``: how many of the copies it gets wrong."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.device, self.wrong = torch.device("cpu"), wrong

    def forward(self, ids, use_cache=False):
        certain = torch.full((*ids.shape, ALPHABET + 1), -40.0)
        certain[..., 1:] = 0.0  # of the string
        for place in range(DISTANCE - 1, ids.shape[1]):
            certain[:, place] = -40.0
            answer = torch.zeros_like(ids[:, 0]) if place + 1 == LENGTH else ids[:, place + 1 - DISTANCE]
            if DISTANCE <= place + 1 < DISTANCE + self.wrong:
                answer = answer % ALPHABET + 1
            certain[:, place].scatter_(1, answer[:, None], 0.0)
        return SimpleNamespace(logits=certain)


@pytest.fixture
def subject(recipe, tmp_path):
    data = DataConfig.model_validate(COPY)
    train = recipe.train.model_copy(update={"seq_len": LENGTH + 1, "tokens_per_step": 4 * (LENGTH + 1)})
    known = replace(recipe, data=data, train=train)
    return lambda model: Subject(model, known, prepare(data, tmp_path / "cache"), 4)


def test_whoever_knows_the_task_is_at_its_floor(subject):
    found = PROBE(subject(Knows()))
    assert found["val/task_excess_loss"] == pytest.approx(0.0, abs=1e-5)
    assert found["val/task_answer_loss"] == pytest.approx(0.0, abs=1e-5)
    assert found["val/task_accuracy"] == 1.0


def test_each_wrong_answer_counts(subject):
    found = PROBE(subject(Knows(wrong=2)))
    assert found["val/task_accuracy"] == pytest.approx(1 - 2 / (LENGTH - DISTANCE))


def test_an_untrained_model_is_where_guessing_is(subject, recipe):
    model = build_model(recipe.model, seed=1)
    found = PROBE(subject(model))
    assert found["val/task_excess_loss"] > 0.5 * math.log(recipe.model.vocab_size)
    assert found["val/task_accuracy"] < 0.3


def test_other_text_is_refused(recipe):
    with pytest.raises(ConfigError, match="a text of type files; allowed: type synthetic"):
        PROBE(Subject(Knows(), recipe, prepare(recipe.data, Path("cache")), 4))


def test_the_base_fits_its_task(tmp_path):
    file = ROOT / "experiments/base/recall.yaml"
    _, recipe = load_base(file)
    assert recipe.train.seq_len == recipe.data.source.task.length + 1
    other = tmp_path / "base/recall.yaml"
    other.parent.mkdir()
    other.write_text(file.read_text().replace("num_queries: 12", "num_queries: 10"))
    with pytest.raises(ConfigError, match="seq_len: received 33; allowed: 29: a document of the task and the token"):
        load_base(other)
