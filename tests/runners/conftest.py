"""A project folder of one's own: a micro base on generated text, so that whole sweeps take seconds."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runners.planning.bases import load_base
from runners.planning.recipe import Recipe
from tests.runners.helpers import clean_environment, start_main

MICRO = """
name: micro
model:
  hidden_size: 24
  num_hidden_layers: 2
  vocab_size: 300
  max_position_embeddings: 32
  embedding: {type: plain}
  rotary: {type: rope, theta: 10000.0}
  attention: {type: gqa, num_attention_heads: 6, num_key_value_heads: 2, head_dim: 4}
  mlp: {type: swiglu, expansion: 8/3}
  norm: {type: rms, eps: 1e-5}
  residual: {type: pre}
  head: {type: tied}
  init: {type: normal, std: 0.2}
data:
  source: {type: files, train: [text/train-*.txt], validation: [text/validation-*.txt]}
  tokenizer: {type: bpe, vocab_size: 300}
train:
  seq_len: 32
  tokens_per_step: 128
  num_steps: 30
  lr: 1e-2
  optimizer: {type: adamw, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01}
  schedule: {type: wsd, warmup_steps: 3, decay_fraction: 0.2}
  max_grad_norm: 1.0
  precision: float32
  deterministic: false
eval: {every_steps: 10, num_windows: 8, probes: {loss: {}}}
decide: {metric: final/val_loss, alpha: 0.05, margin: 0.05}
blocks: 3
checks:
  twin: {train: {init_perturbation: 9.5367431640625e-07}, expect: same}
"""

MICRO_EXPERIMENT = """
name: micro-theta
version: 1
question: Does theta matter here?
base: micro
variants:
  theta_100: {model: {rotary: {theta: 100.0}}}
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker has it for models this small; two would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SYLLABLES = [
    "al",
    "bet",
    "gam",
    "ma",
    "del",
    "ta",
    "ep",
    "si",
    "lon",
    "ze",
    "et",
    "io",
    "kap",
    "lam",
    "mu",
    "nu",
    "xi",
    "pi",
    "rho",
    "sig",
    "tau",
    "phi",
]


def write_project(folder: Path) -> Path:
    """experiments/micro_theta.yaml, its base and its text, in ``folder``."""
    (folder / "experiments/base").mkdir(parents=True)
    (folder / "experiments/base/micro.yaml").write_text(MICRO)
    (folder / "experiments/micro_theta.yaml").write_text(MICRO_EXPERIMENT)
    (folder / "text").mkdir()
    words = ["".join(random.Random(i).choices(SYLLABLES, k=1 + i % 3)) for i in range(60)]
    for split, count in (("train", 12), ("validation", 3)):
        for i in range(count):
            text = " ".join(random.Random(f"{split}{i}").choices(words, k=400))
            (folder / f"text/{split}-{i:02}.txt").write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a folder of its own."""
    return write_project(tmp_path)


@pytest.fixture
def recipe(project: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """What the micro base trains; the project is the current folder."""
    monkeypatch.chdir(project)
    return load_base(Path("experiments/base/micro.yaml"))[1]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(project: Path) -> Command:
    """Runs `python -m runners` in the project folder, in a process that has loaded torch already."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            child = start_main(project, *arguments, out=out)
            child.join(timeout=300)
            if child.exitcode is None:
                child.kill()
                child.join()
            said = [(out / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, child.exitcode, *said)

    return run


@pytest.fixture
def prompt(project: Path) -> Command:
    """The same as a user types it, in a process that begins with nothing."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runners", *map(str, arguments)]
        return subprocess.run(
            command, cwd=project, env=clean_environment(), capture_output=True, text=True, timeout=300
        )

    return run
