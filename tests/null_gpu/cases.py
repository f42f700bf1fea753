"""The runs that are tried on the null card, and their recipes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runners.data.config import DataConfig
from runners.planning.bases import load_base
from runners.planning.recipe import Recipe, read_eval
from tests.conftest import ROOT
from tests.runners.helpers import changed

STEPS, EVALUATES, BATCH = 6, 3, 16  # steps 4 and 5 are neither logged nor evaluated
WINDOWS = 20  # to evaluate on: the last batch is not full, whatever power of two a micro-batch is above four


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to run: SmolLM2-135M at full width with these changes, for six steps of 16 windows.

    ``model`` and ``train``: changes to the recipe. ``stop_after``: a step after which the run is stopped, and resumed.
    ``plant``: a fault of `plants.py`. ``memory_gib``: of the card.
    """

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    micro_batch: int | None = None
    stop_after: int | None = None
    memory_gib: float = 140.0
    plant: str = ""


def recipe_of(case: Case) -> Recipe:
    """Its recipe, on the text in the current folder."""
    base = load_base(ROOT / "experiments/base/smollm2-135m.yaml")[1]
    source = {"type": "files", "train": ["text/train.txt"], "validation": ["text/validation.txt"]}
    data = DataConfig.model_validate({"source": source, "tokenizer": {"type": "bpe", "vocab_size": 300}})
    evaluation, _ = read_eval({"every_steps": EVALUATES, "num_windows": WINDOWS, "probes": {"loss": {}}})
    assert evaluation
    train = changed(base.train, **{"num_steps": STEPS, "warmup_steps": 2, **case.train})
    model = base.model.override({"num_hidden_layers": 2, **case.model})
    return replace(base, model=model, data=data, train=train, eval=evaluation)


def write_text(folder: Path) -> None:
    """Random words, for six steps and the evaluation."""
    (folder / "text").mkdir(exist_ok=True)
    for name in ("train", "validation"):
        draw = random.Random(name)
        known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(5_000)]
        (folder / f"text/{name}.txt").write_text(" ".join(draw.choices(known, k=40_000)))
