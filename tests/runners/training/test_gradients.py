"""Any split of a batch gives the whole batch's gradients; and what does not fit into memory is split."""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llama_variants import build_model
from runners.planning.bases import load_base
from runners.training import memory
from runners.training.gradients import gradients
from runners.training.parallel import World
from tests.llama_variants.models import TINY
from tests.runners.children import Plan, finish, new_run
from tests.runners.helpers import TRAIN, changed

ALONE = World()
ROWS, TIME = 6, 9
CONFIG = TRAIN.model_copy(update={"seq_len": TIME, "tokens_per_step": ROWS * TIME})
BATCH = torch.randint(TINY.vocab_size, (ROWS, TIME), generator=torch.Generator().manual_seed(3))


def whole() -> tuple[torch.nn.Module, torch.Tensor]:
    """A float64 model with the gradients of transformers' own loss over the whole batch."""
    model = build_model(TINY, seed=1, dtype=torch.float64)
    loss = model(BATCH, labels=BATCH).loss
    loss.backward()
    return model, loss.detach()


class Casts(TorchDispatchMode):
    """Counts matrices of float32 that are made bfloat16, by size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[torch.Size] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dim() == 2:
            self.sizes[args[0].shape] += args[0].dtype == torch.float32 and out.dtype == torch.bfloat16
        return out


@pytest.mark.parametrize("micro_batch", [1, 2, 4, ROWS])
def test_weights_are_cast_once_a_step_and_no_bit_is_another(micro_batch):
    config = CONFIG.model_copy(update={"precision": "bfloat16"})
    model, apart = build_model(TINY, seed=1), build_model(TINY, seed=1)
    with Casts() as casts:
        loss = gradients(model, BATCH, config, ALONE, micro_batch)
    matrices = Counter(p.shape for p in model.parameters() if p.dim() == 2)  # the tied head's is one of them
    assert {shape: casts.sizes[shape] for shape in matrices} == matrices

    expected = torch.zeros(())
    for part in BATCH.split(micro_batch):  # each in a context of its own
        with torch.autocast("cpu", dtype=torch.bfloat16):
            own = apart(part, labels=part, num_items_in_batch=ROWS * (TIME - 1)).loss
        own.backward()
        expected += own.detach()
    assert torch.equal(loss, expected)
    for (name, p), other in zip(model.named_parameters(), apart.parameters(), strict=True):
        assert p.grad is not None
        assert other.grad is not None
        assert torch.equal(p.grad, other.grad), name


@given(micro_batch=st.integers(1, ROWS + 2))
def test_any_micro_batch_gives_the_same_gradients(micro_batch):
    model, expected = whole()
    other = build_model(TINY, seed=1, dtype=torch.float64)
    for _ in range(2):  # nothing is left over from an earlier attempt
        loss = gradients(other, BATCH, CONFIG, ALONE, micro_batch)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the loss itself is computed in float32
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-9, msg=name)


def test_an_uneven_last_micro_batch_counts_by_its_tokens():
    """Means of means would weigh the last row of six as much as the five before it."""
    model, expected = whole()
    assert gradients(model, BATCH, CONFIG, ALONE, 5).item() == pytest.approx(expected.item(), rel=1e-6)
    means = [model(part, labels=part).loss.item() for part in BATCH.split(5)]
    assert sum(means) / 2 != pytest.approx(expected.item(), rel=1e-4)


@given(total=st.integers(1, 300), most=st.integers(1, 400))
def test_parts_are_even_where_that_makes_no_small_ones(total, most):
    part = memory.even_parts(total, most)
    assert most / 2 < part <= most or part == total
    divisors = [n for n in range(1, total + 1) if total % n == 0 and most / 2 < n <= most]
    assert part == (max(divisors) if divisors else min(total, most))


@given(total=st.integers(1, 300), first=st.integers(1, 300), fits=st.integers(1, 300))
def test_halves_until_it_fits(total, first, fits):
    count = memory.even_parts(total, first)
    tried, said = [], []

    def attempt(size: int) -> str:
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert memory.largest_that_fits(count, attempt, said.append, total) == (tried[-1], "done")
    assert tried[0] == count
    assert tried[-1] <= fits
    assert all(b == memory.even_parts(total, (a + 1) // 2) < a for a, b in itertools.pairwise(tried))
    assert len(said) == len(tried) - 1


def test_gives_up_at_one_and_on_other_errors():
    def too_much(size: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        memory.largest_that_fits(4, too_much, lambda text: None, 4)
    with pytest.raises(torch.OutOfMemoryError):
        memory.largest_that_fits(4, too_much, pytest.fail, 4, retry=False)
    with pytest.raises(RuntimeError, match="shapes"):
        memory.largest_that_fits(4, lambda size: (_ for _ in ()).throw(RuntimeError("shapes")), pytest.fail, 4)


def losses(run) -> list[float]:
    return [row["metrics"]["train/loss"] for row in run.rows()[0]]


@pytest.mark.skipif(platform.system() != "Linux", reason="limits the address space")
@pytest.mark.parametrize("from_step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_real_shortage_of_memory_changes_no_loss(project, monkeypatch, from_step):
    """The process may take 60 MB more, from the start or from its sixth step on; whole batches take some 150."""
    monkeypatch.chdir(project)
    recipe = load_base(Path("experiments/base/micro.yaml"))[1]
    train = changed(recipe.train, tokens_per_step=32 * 512, num_steps=8, warmup_steps=2)
    recipe = replace(recipe, train=train)
    run = new_run(project, recipe)
    assert finish(Plan(project, run.key, 1000, 512)) == 0
    assert not [line for line in run.events()[0] if "out of memory" in line]
    plenty = losses(run)
    run.forget()
    plan = Plan(project, run.key, 1000, 512, memory_bytes=60_000_000, memory_from_step=from_step)
    assert finish(plan) == 0, run.status
    events = [line for line in run.events()[0] if "out of memory" in line]
    assert events[0] == "out of memory with 512 windows at a time; going on with 256"
    assert losses(run) == pytest.approx(plenty, abs=2e-5)
    assert losses(run)[:from_step] == plenty[:from_step]


def test_an_explicit_micro_batch_is_taken(project, monkeypatch):
    monkeypatch.chdir(project)
    recipe = load_base(Path("experiments/base/micro.yaml"))[1]
    run = new_run(project, recipe)
    assert finish(Plan(project, run.key)) == 0
    plain = losses(run)
    run.forget()
    assert finish(Plan(project, run.key, micro_batch=3)) == 0
    assert losses(run) == pytest.approx(plain, abs=2e-5)
    assert losses(run) != plain
