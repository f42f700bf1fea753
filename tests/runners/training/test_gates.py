"""The gates: honest models pass, planted faults are named."""

from __future__ import annotations

import math
import re
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from llama_variants import LlamaAttention, build_model
from runners.training.gates import (
    GradientWatch,
    RunInvalid,
    check_first_loss,
    check_learning,
    count_spikes,
    first_not_finite,
    num_found,
    preflight,
    recipe_faults,
    where_not_finite,
)
from tests.llama_variants.models import EVERY_BLOCK, TINY
from tests.runners.helpers import TRAIN, changed


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", EVERY_BLOCK.values(), ids=EVERY_BLOCK.keys())
def test_every_registered_block_passes(config, batch):
    model = build_model(config)
    preflight(model, batch)
    assert model.training
    watch = GradientWatch(model)
    for step in range(4):
        loss = model(batch, labels=batch).loss
        loss.backward()
        watch.after_backward(step)
        if step == 0:
            check_first_loss(loss.item(), config.vocab_size)


def test_missing_causal_mask_is_named(batch, monkeypatch):
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, is_causal, **k: attend(*a, **k))
    with pytest.raises(RunInvalid, match="causality"):
        preflight(build_model(TINY), batch)


def test_model_without_content_is_named(batch, monkeypatch):
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, x, *_: torch.zeros_like(x))
    with pytest.raises(RunInvalid, match="content"):
        preflight(build_model(TINY), batch)


def test_unshifted_labels_are_named(batch):
    model = build_model(TINY)
    forward = type(model).forward

    def unshifted(self, input_ids, labels=None, **_):
        out = forward(self, input_ids)
        if labels is not None:
            out.loss = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
        return out

    model.forward = unshifted.__get__(model)
    with pytest.raises(RunInvalid, match="label shift"):
        preflight(model, batch)


def test_torn_tie_is_named(batch):
    model = build_model(TINY)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(RunInvalid, match="tied head"):
        preflight(model, batch)


def test_parameter_without_gradient_is_named(batch):
    model = build_model(TINY)
    model.model.layers[1].mlp.down_proj.weight.requires_grad_(False)
    watch = GradientWatch(model)
    with pytest.raises(
        RunInvalid, match=r"no gradient in 1 parameters after 3 steps: model.layers.1.mlp.down_proj.weight"
    ):
        for step in range(3):
            model(batch, labels=batch).loss.backward()
            watch.after_backward(step)


class ReadBacks(TorchDispatchMode):
    """Counts what would wait for a card: a number taken out of a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_gradients_are_watched_without_waiting_for_each(batch):
    """Read one by one, the 272 parameters of the 135M model kept a card waiting as often in each of three steps."""
    model = build_model(TINY)
    watch = GradientWatch(model)
    model(batch, labels=batch).loss.backward()
    with ReadBacks() as read:
        watch.after_backward(0)
    assert read.count == 0  # `tolist` of the one tensor that holds all is no such operation
    assert not watch._waiting


@pytest.mark.parametrize(("value", "arrived"), [(0.0, False), (1e-40, True), (-1e-30, True), (math.nan, True)])
def test_the_smallest_gradient_counts(value, arrived):
    model = build_model(TINY)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        p.grad.view(-1)[-1] = value
    watch = GradientWatch(model)
    watch.after_backward(0)
    assert bool(watch._waiting) != arrived


@pytest.mark.parametrize(
    ("excess", "passes"), [(-0.2, False), (-0.05, True), (0.5, True), (1.1, False), (math.nan, False)]
)
def test_first_loss(excess, passes):
    if passes:
        check_first_loss(math.log(1024) + excess, 1024)
    else:
        with pytest.raises(RunInvalid, match="first loss"):
            check_first_loss(math.log(1024) + excess, 1024)


def test_first_bad_step_is_found():
    assert first_not_finite([1.0, 2.0], [0.1, 0.2]) is None
    assert first_not_finite([1.0, 2.0, math.nan], [0.1, math.inf, math.nan]) == 1


def test_what_is_not_finite_is_named(batch):
    model = build_model(TINY)
    hardware = "nothing by itself: a sum that overflows, a fault of the hardware, or not deterministic"
    assert where_not_finite(model, batch.split(3)) == hardware
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    said = where_not_finite(model, batch.split(3))
    assert said == "the output of model.layers.1.mlp.up_proj, whose weight is not finite itself"
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@given(
    before=st.lists(st.floats(0, 10), max_size=200),
    new=st.lists(st.one_of(st.floats(0, 10), st.floats(50, 1000)), min_size=1, max_size=40),
)
def test_spikes_are_counted_as_their_definition_says(before, new):
    losses, expected = [*before, *new], 0
    for i in range(len(before), len(losses)):
        window = losses[max(0, i - 128) : i]
        if len(window) >= 32:
            expected += losses[i] > statistics.fmean(window) + 6 * statistics.pstdev(window)
    assert abs(count_spikes(before, new) - expected) <= (0 if len(set(losses)) > 1 else len(new))


def test_a_spike_among_noise():
    noise = [3 + 0.01 * ((i * 37) % 11) for i in range(128)]
    assert count_spikes(noise, [3.1, 3.05]) == 0
    assert count_spikes(noise, [3.05, 4.0, 3.05]) == 1
    assert count_spikes(noise[:20], [9.0]) == 0  # too few to tell


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"warmup_steps": 1, "lr": 3e-3}, "warm-up: none, at a learning rate of 0.003 and 8 tokens a step"),
        ({"warmup_steps": 1, "lr": 3e-3, "tokens_per_step": 2**20}, None),
        ({"warmup_steps": 0, "lr": 1e-3}, None),
        ({"lr": 2.1e-8}, None),
        ({"lr": 8e-9}, r"learning rate: 8e-10 at step 1; below 1e-09"),
    ],
)
def test_recipes(changes, says):
    faults = list(recipe_faults(changed(TRAIN, **changes)))
    assert (says is None) == (not faults)
    assert not says or re.match(says, faults[0])


@given(data=st.data())
def test_rows_are_found_in_tokens_as_bytes_would_find_them(data):
    wide = data.draw(st.booleans())  # a vocabulary beyond 16 bits
    tokens = np.asarray(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=60)))
    tokens = tokens.astype(np.uint32 if wide else np.uint16) + np.asarray(70_000 if wide else 0, dtype=np.uint32)
    tokens = tokens.astype(np.uint32 if wide else np.uint16)
    length = data.draw(st.integers(1, 5))
    rows = np.asarray(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1)))
    text = "".join(str(int(token) % 70_000) for token in tokens)
    assert num_found(rows + 70_000 * wide, tokens) == sum("".join(map(str, row)) in text for row in rows)


def test_plateau_and_rate():
    chance = math.log(1024)
    short, long, brief = (changed(TRAIN, num_steps=n) for n in (200, 2000, 60))
    check_learning(109, [chance] * 109, 1e-3, 1024, short)  # after ten steps of warm-up
    check_learning(110, [chance - 0.2] * 110, 1e-3, 1024, short)
    check_learning(300, [chance] * 100, 1e-3, 1024, long)
    for done, train in ((110, short), (510, long)):
        with pytest.raises(
            RunInvalid, match=f"plateau: after {done} steps the loss of the last {done // 10} is 6.9315"
        ):
            check_learning(done, [chance] * 100, 1e-3, 1024, train)
    check_learning(60, [chance + 0.9] * 60, 1e-3, 1024, brief)  # a short run has not learned much, but nothing was lost
    with pytest.raises(RunInvalid, match="diverged: after 60 steps the loss of the last 6 is 321.0"):
        check_learning(60, [321.0] * 60, 1e-3, 1024, brief)
    check_learning(100, [0.11 * chance] * 100, 1e-3, 1024, short)
    with pytest.raises(RunInvalid, match="too good: after 100 steps the loss of the last 10 is 0.6238"):
        check_learning(100, [0.09 * chance] * 100, 1e-3, 1024, short)
    for rate in (1e-58, 0.0, math.nan):
        with pytest.raises(RunInvalid, match="learning rate: the optimizer's is"):
            check_learning(5, [3.0], rate, 1024, short)
