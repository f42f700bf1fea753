"""The bugs of published training logs, planted one by one: each run is invalid, and the reason names the bug.

The logs: a course's 135M Llama that "falls" to 0.41 (labels not shifted, no causal mask, q and k overwritten by the
sinusoids, a learning rate of 1e-58, data started again by a resume), and its siblings (a copy task under label
smoothing, validation on the first training samples, a corpus memorised over 250 epochs, a rate borrowed from batches
of a million tokens).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from llama_variants import LlamaAttention, LlamaForCausalLM, LlamaMLP
from runners.data.batches import Corpus, TokenSplit
from runners.execution import journal
from runners.execution import one_run as execution
from runners.execution.one_run import RunOptions, execute
from runners.planning.bases import load_base
from runners.planning.recipe import Recipe
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import loop, state
from runners.training import start as beginning
from runners.training.determinism import seed_step
from runners.training.optimizers.adamw import AdamW
from runners.training.schedules.wsd import WarmupStableDecay
from tests.runners.children import new_run
from tests.runners.helpers import changed

Patch = pytest.MonkeyPatch


@pytest.fixture
def recipe(project, monkeypatch) -> Recipe:
    monkeypatch.chdir(project)
    return load_base(Path("experiments/base/micro.yaml"))[1]


def carried_out(project: Path, recipe: Recipe, **changes: object) -> RunFolder:
    run = new_run(project, replace(recipe, train=changed(recipe.train, **changes)))
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    return run


def test_the_honest_control_is_valid(project, recipe):
    run = carried_out(project, recipe, num_steps=120)  # long enough for every gate
    assert (run.status.state, run.status.reason) == ("FINISHED", "")
    assert run.rows()[0][-1]["metrics"]["final/val_loss"] < 5


def with_loss(patch: Patch, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    forward = LlamaForCausalLM.forward

    def planted(self, input_ids, labels=None, **_):
        out = forward(self, input_ids)
        if labels is not None:
            out.loss = loss_of(out.logits.flatten(0, 1), labels.flatten())
        return out

    patch.setattr(LlamaForCausalLM, "forward", planted)


def unshifted_labels(patch: Patch) -> None:
    with_loss(patch, F.cross_entropy)


def label_smoothing_over_a_copy_task(patch: Patch) -> None:
    with_loss(patch, lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1))


def no_causal_mask(patch: Patch) -> None:
    attend = F.scaled_dot_product_attention
    patch.setattr(F, "scaled_dot_product_attention", lambda *a, is_causal, **k: attend(*a, **k))


def queries_and_keys_overwritten_by_positions(patch: Patch) -> None:
    project = LlamaAttention.project

    def planted(self, x):
        q, k, v = project(self, x)
        time = torch.arange(q.shape[-2])[:, None] / 10.0 ** torch.arange(q.shape[-1])
        return torch.sin(time).expand_as(q), torch.sin(time).expand_as(k), v

    patch.setattr(LlamaAttention, "project", planted)


def rate_that_underflows(patch: Patch) -> None:
    patch.setattr(WarmupStableDecay, "__call__", lambda self, step: 0.5**step)


def rate_scheduled_twice(patch: Patch) -> None:
    """A scheduler beside ours has the optimizer's rate shrink; the recipe's schedule is in order."""
    norm = nn.utils.clip_grad_norm_
    count = itertools.count()

    def planted(parameters, max_norm):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1 ** next(count)
        return norm(parameters, max_norm)

    optimizers: list[torch.optim.Optimizer] = []
    build = AdamW.__init__
    patch.setattr(AdamW, "__init__", lambda self, *a: optimizers.append(self) or build(self, *a))
    patch.setattr(nn.utils, "clip_grad_norm_", planted)


def validation_is_the_head_of_training(patch: Patch) -> None:
    prepare = execution.prepare

    def planted(*arguments) -> Corpus:
        corpus = prepare(*arguments)
        head = corpus.train.tokens[: len(corpus.validation.tokens)]
        return replace(corpus, validation=TokenSplit("validation", head, corpus.validation.num_bytes))

    patch.setattr(execution, "prepare", planted)


def frozen_weights(patch: Patch) -> None:
    patch.setattr(AdamW, "step", lambda self: None)


def torn_tie(patch: Patch) -> None:
    build = beginning.build_model

    def planted(*arguments, **options):
        model = build(*arguments, **options)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    patch.setattr(beginning, "build_model", planted)


def nothing(patch: Patch) -> None:
    pass


@pytest.mark.parametrize(
    ("plant", "changes", "reason"),
    [
        (unshifted_labels, {}, "label shift: the loss is .*, that of predicting the next token"),
        (label_smoothing_over_a_copy_task, {}, "label shift"),
        (no_causal_mask, {}, "causality: changing the last token moved an earlier logit"),
        (
            queries_and_keys_overwritten_by_positions,
            {},
            r"no gradient in 4 parameters after 3 steps: model.layers.0.self_attn.q_proj.weight, .*k_proj",
        ),
        (rate_that_underflows, {"num_steps": 60}, "learning rate: 5.96e-10 at step 25"),
        (rate_scheduled_twice, {}, "learning rate: the optimizer's is .*e-1.* at step"),
        (validation_is_the_head_of_training, {}, "validation: 64 of 64 passages of 64 tokens stand word for word"),
        (
            nothing,
            {"num_steps": 20_000},
            r"train\.num_steps: received 20,000, whose 2,560,000 tokens are .* passes over the text",
        ),
        (nothing, {"warmup_steps": 0}, "warm-up: none, at a learning rate of 0.01 and 128 tokens a step"),
        (frozen_weights, {"num_steps": 120}, "plateau: after 103 steps .*; guessing gives 5.7038"),
        (torn_tie, {}, "tied head"),
    ],
)
def test_a_published_bug_is_named(project, recipe, monkeypatch, plant, changes, reason):
    plant(monkeypatch)
    run = carried_out(project, recipe, **changes)
    assert run.status.state == "INVALID"
    assert not run.final.exists()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(run.status.reason)


class StreamFromTheStart:
    """What `iter(DataLoader)` is: it knows no step, and begins anew in every process."""

    def __init__(self) -> None:
        self.batches: dict[int, np.ndarray] = {}

    def plant(self, patch: Patch) -> None:
        true, count = TokenSplit.batch, itertools.count()

        def planted(split, step, **options):
            if step not in self.batches:
                self.batches[step] = true(split, next(count), **options)
            return self.batches[step]

        patch.setattr(TokenSplit, "batch", planted)


def test_data_started_again_by_a_resume_is_named(project, recipe, monkeypatch):
    run = new_run(project, recipe)
    stop = StopRequest()

    def stopping(training):
        if training.progress.step == 13:
            stop.signum = 15

    with pytest.MonkeyPatch.context() as patch:
        StreamFromTheStart().plant(patch)
        with pytest.raises(Stopped):
            execute(run, Path("cache"), "cpu", RunOptions(), stop, stopping)
    assert run.status.state == "KILLED"
    with pytest.MonkeyPatch.context() as patch:
        StreamFromTheStart().plant(patch)
        execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    assert run.status.state == "INVALID"
    assert run.status.reason.startswith("data: step 13 was trained on batch ")
    assert run.status.reason.endswith("its batch is that of step 1: the data was started again")
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())  # and without the bug it goes on
    assert run.status.state == "FINISHED"


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda y: y * float("inf"), "first not finite: the output of model.layers.1.mlp;"),
        (BadGradient.apply, "first not finite: the gradient of model.layers.1.mlp.down_proj.weight;"),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run_before_the_update(project, recipe, monkeypatch, damage, says):
    """At step 18 (from 1), in the second layer; found at the next logged step, 20, with the weights of step 17."""
    monkeypatch.setattr(journal, "LOG_POINTS", 3)
    at, weights = [0], {}
    forward = LlamaMLP.forward
    second: list[nn.Module] = []

    def planted(self, x):
        if self not in second and len(second) < 2:
            second.append(self)
        y = forward(self, x)
        return damage(y) if at[0] == 17 and self is second[1] and self.training else y

    def seeded(seed, step, *rest):  # before each step, and before the batch is computed again under its own
        at[0] = step
        return seed_step(seed, step, *rest)

    def after(training):
        weights[training.progress.step - 1] = training.model.model.norm.weight.detach().clone()

    monkeypatch.setattr(LlamaMLP, "forward", planted)
    for module in (loop, state):
        monkeypatch.setattr(module, "seed_step", seeded)
    run = new_run(project, recipe)
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest(), after)
    assert run.status.state == "INVALID"
    reason = run.status.reason
    assert reason.startswith("step 18: loss ")
    assert "the update was not applied" in reason
    assert says in reason
    corpus = execution.prepare(recipe.data, Path("cache"))
    rows = corpus.train.batch(17, seed=5, batch_size=4, seq_len=32)
    assert f"batch {state.batch_id(rows)} of seed 5" in reason
    assert torch.equal(weights[17], weights[16])  # the bad one
    assert torch.equal(weights[19], weights[16])  # and the ones after it
    assert not torch.equal(weights[16], weights[15])
