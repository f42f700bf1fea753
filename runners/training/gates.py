"""Validity gates: a run that fails one is invalid, whatever its loss says.

Before the first step: the recipe, the data, the model. While it trains: what the logged steps show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from runners.planning.components import SCHEDULE
from runners.planning.recipe import Recipe, TrainConfig

if TYPE_CHECKING:  # with transformers, which the gates of a recipe do without
    from llama_variants import LlamaForCausalLM
    from runners.data.batches import Corpus

GRADIENT_STEPS = 3  # a gate initialised at zero may need a step or two before a gradient passes it
MIN_LR = 1e-9
"""AdamW moves a weight by about lr a step, and float32 tells weights near 0.05 apart by 4e-9."""
REFERENCE_LR, REFERENCE_TOKENS = 3e-3, 2**20
"""SmolLM2-135M's own peak rate and batch (huggingface/smollm, config_smollm2_135M.yaml). Copied to batches of a few
thousand tokens without warm-up, that rate is known to fail."""
PROBES, PROBE_TOKENS = 64, 64  # passages spread over the validation text
MAX_SHARED = 0.1  # of them; a licence text may well stand in both splits
PLATEAU_STEPS = 100  # a run shorter than this shows no plateau
LEAK = 0.1
"""Of guessing's loss. SmolLM2-135M itself, after 2 T tokens, has 0.16 of it on the held-out packages of smollm2-135m
(LOG.md, 2026-11-27); a run of millions of tokens that gets below this has not learned to predict."""
SPIKE_SIGMAS, SPIKE_WINDOW, SPIKE_MIN = 6.0, 128, 32


class RunInvalid(Exception):  # noqa: N818 (a verdict on the run, not an error of the program)
    """A validity gate failed; the message is the reason."""


def recipe_faults(train: TrainConfig) -> Iterator[str]:
    """What would make a run of this recipe invalid, as far as the recipe alone tells."""
    schedule = SCHEDULE[train.schedule.type](train.schedule, train.num_steps)
    for step in range(train.num_steps):
        if not (lr := train.lr * schedule(step)) >= MIN_LR:
            yield f"learning rate: {lr:.3g} at step {step + 1}; below {MIN_LR:g} no weight moves"
            break
    if train.schedule.warmup_steps < 2 and train.lr >= REFERENCE_LR and train.tokens_per_step < REFERENCE_TOKENS:
        yield (
            f"warm-up: none, at a learning rate of {train.lr:g} and {train.tokens_per_step:,} tokens a step; such a "
            f"rate is for batches of {REFERENCE_TOKENS:,} and with warm-up"
        )


def check_recipe(train: TrainConfig) -> None:
    """Raises RunInvalid with the first of :func:`recipe_faults`."""
    for fault in recipe_faults(train):
        raise RunInvalid(fault)


def check_data(corpus: Corpus, recipe: Recipe) -> None:
    """Raises RunInvalid when a split is too small for the recipe, or the run would be shown what it is judged on."""
    for problem in recipe.size_problems(corpus.sizes):
        raise RunInvalid(str(problem))
    tokens = corpus.validation.tokens
    length = min(PROBE_TOKENS, len(tokens))
    starts = np.unique(np.linspace(0, len(tokens) - length, PROBES).astype(int))
    shared = num_found(np.stack([tokens[start : start + length] for start in starts]), corpus.train.tokens)
    if shared > max(1, MAX_SHARED * len(starts)):
        raise RunInvalid(
            f"validation: {shared} of {len(starts)} passages of {length} tokens stand word for word in the training "
            "text"
        )


def num_found(rows: np.ndarray, tokens: np.ndarray) -> int:
    """How many of ``rows`` (n, k) stand somewhere in ``tokens``."""
    length = rows.shape[1]
    if len(tokens) < length:
        return 0
    size = 2**16 if tokens.dtype == np.uint16 else int(max(rows.max(), tokens.max())) + 1

    def has(ids: np.ndarray) -> np.ndarray:
        """A table over all token ids."""
        table = np.zeros(size, dtype=bool)
        table[ids] = True
        return table

    places = np.flatnonzero(has(rows[:, 0])[tokens[: len(tokens) - length + 1]])
    for i in range(1, length):  # a few places are left after the first few tokens
        places = places[has(rows[:, i])[tokens[places + i]]]
    found = {tokens[place : place + length].astype(np.int64).tobytes() for place in places}
    return sum(row.astype(np.int64).tobytes() in found for row in rows)


@torch.no_grad()
def preflight(model: LlamaForCausalLM, batch: Tensor) -> None:
    """Probe a model on a few training windows ``batch`` (b, t). Raises RunInvalid with the first reason found.

    Three probes: a changed last token moves no earlier logit (causality); a changed first token moves later ones
    (content); the loss is that of predicting the *next* token (label shift). And tied weights are one tensor.
    """
    model.eval()
    batch = batch[:2]
    logits = model(batch, use_cache=False).logits.float()  # (b, t, v)
    scale = logits.std()
    vocab_size = logits.shape[-1]

    changed = batch.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocab_size
    moved = (model(changed, use_cache=False).logits.float() - logits)[:, :-1].abs().max()
    if moved > 1e-3 * scale:
        raise RunInvalid(f"causality: changing the last token moved an earlier logit by {moved:.3g}")

    changed = batch.clone()
    changed[:, 0] = (changed[:, 0] + 1) % vocab_size
    moved = (model(changed, use_cache=False).logits.float() - logits)[:, 1:].abs().max()
    if not moved > 1e-6 * scale:
        raise RunInvalid(f"content: changing the first token moved later logits by only {moved:.3g}")

    loss = model(batch, labels=batch).loss.item()
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).item()
    if not math.isclose(loss, shifted, rel_tol=1e-4):
        raise RunInvalid(f"label shift: the loss is {loss:.4f}, that of predicting the next token {shifted:.4f}")

    if model.config.tie_word_embeddings != (model.lm_head.weight is model.model.embed_tokens.weight):
        raise RunInvalid("tied head: the weights are not what the configuration says")
    model.train()


def check_continues(batch_id: str, expected: str, first: str, step: int) -> None:
    """After a resume: the data goes on where it was. Raises RunInvalid otherwise.

    Args:
        batch_id: of what the data now says was the last step's batch.
        expected: of the batch that the checkpoint's last step was trained on.
        first: of the run's first batch.
        step: the checkpoint's, from 1.
    """
    if batch_id != expected:
        what = "that of step 1: the data was started again" if batch_id == first else "another"
        raise RunInvalid(f"data: step {step} was trained on batch {expected}; after the resume its batch is {what}")


def check_first_loss(loss_nats: float, vocab_size: int) -> None:
    """A fresh model knows nothing: its loss is near that of guessing. Raises RunInvalid outside ln(v) -0.1 … +1.0."""
    chance = math.log(vocab_size)
    if not chance - 0.1 <= loss_nats <= chance + 1.0:
        raise RunInvalid(
            f"first loss {loss_nats:.4f} outside {chance - 0.1:.4f} … {chance + 1.0:.4f} (guessing gives {chance:.4f})"
        )


class GradientWatch:
    """Sees that every parameter gets a gradient within the first few steps."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._waiting = dict(model.named_parameters())

    def after_backward(self, step: int) -> None:
        """Call before the gradients are cleared, with the step's number from 0. Raises RunInvalid after the third.

        Waits for the device, once a call.
        """
        if step >= GRADIENT_STEPS:
            return
        grads = {name: p.grad for name, p in self._waiting.items() if p.grad is not None}
        if grads:  # the largest entry of each: a sum of squares would lose what is tiny
            largest = torch.stack(torch._foreach_norm(list(grads.values()), float("inf"))).tolist()
            for name, value in zip(grads, largest, strict=True):
                if value != 0:
                    del self._waiting[name]
        if step == GRADIENT_STEPS - 1 and self._waiting:
            names = ", ".join(list(self._waiting)[:5])
            raise RunInvalid(f"no gradient in {len(self._waiting)} parameters after {GRADIENT_STEPS} steps: {names}")


def first_not_finite(losses: Sequence[float], grad_norms: Sequence[float]) -> int | None:
    """Index of the first step whose loss or gradient norm is not finite; None where all are."""
    for i, pair in enumerate(zip(losses, grad_norms, strict=True)):
        if not all(map(math.isfinite, pair)):
            return i
    return None


def where_not_finite(model: LlamaForCausalLM, parts: Sequence[Tensor]) -> str:
    """Run a batch, given as its micro-batches, once more, forward and backward, and name what is first not finite.

    Forward, that is a module whose output is not finite while what it holds has not shown it yet; backward, a
    parameter's gradient. Changes no parameter; leaves no gradients.
    """
    found: list[str] = []

    def forward(name: str, module: nn.Module) -> None:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if not found and any(not bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
                bad = [own for own, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
                found.append(f"the output of {name}" + (f", whose {bad[0]} is not finite itself" if bad else ""))

        handles.append(module.register_forward_hook(look))

    def backward(name: str, p: nn.Parameter) -> None:
        def look(p: Tensor) -> None:
            assert p.grad is not None
            if not found and not bool(torch.isfinite(p.grad).all()):
                found.append(f"the gradient of {name}")

        handles.append(p.register_post_accumulate_grad_hook(look))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in model.named_modules():
        forward(name or "the model", module)
    for name, p in model.named_parameters():
        backward(name, p)
    try:
        for part in parts:
            model(part, labels=part).loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return (
        found[0] if found else "nothing by itself: a sum that overflows, a fault of the hardware, or not deterministic"
    )


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):  # transformers' outputs are
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def check_learning(done: int, losses: Iterable[float], lr: float, vocab_size: int, train: TrainConfig) -> None:
    """At a logged step: what was learned, and with what rate. Raises RunInvalid.

    Args:
        done: steps done.
        losses: the newest ones, in nats.
        lr: the smallest of the optimizer's groups.
        vocab_size: of the model.
        train: the recipe.
    """
    if not lr >= MIN_LR:
        raise RunInvalid(f"learning rate: the optimizer's is {lr:.3g} at step {done}; below {MIN_LR:g} no weight moves")
    chance = math.log(vocab_size)
    recent = list(losses)[-min(SPIKE_WINDOW, max(1, done // 10)) :]
    mean = float(np.mean(recent))
    said = f"after {done} steps the loss of the last {len(recent)} is {mean:.4f}; guessing gives {chance:.4f}"
    if mean < LEAK * chance:
        raise RunInvalid(f"too good: {said}; it sees what it is to predict, or knows the text by heart")
    if done == train.num_steps and not mean <= chance + 1.0:
        raise RunInvalid(f"diverged: {said}")
    if done >= train.schedule.warmup_steps + max(PLATEAU_STEPS, train.num_steps // 4) and not mean <= chance - 0.1:
        raise RunInvalid(f"plateau: {said}")


def log_faults(steps: Sequence[int], losses: Sequence[float], rates: Sequence[float], vocab_size: int) -> Iterator[str]:
    """Why a run is invalid as far as the lines of its log alone tell; nothing for a sound one.

    Args:
        steps: of the lines, from 1, as they stand.
        losses: of each line, in nats.
        rates: learning rate of each line.
        vocab_size: of the model.
    """
    assert len(steps) == len(losses) == len(rates) > 0
    if (bad := next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)) is not None:
        yield f"not finite: loss {losses[bad]} at step {steps[bad]}"
        return
    if (back := next((i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]), None)) is not None:
        yield f"steps: {steps[back]} stands after {steps[back - 1]}; a part was done twice, or counted anew"
    if steps[0] == 1:
        try:
            check_first_loss(losses[0], vocab_size)
        except RunInvalid as invalid:
            yield str(invalid)
    still = [i for i, rate in enumerate(rates[1:-1], start=1) if not rate >= MIN_LR]  # zero may be the first and last
    if still:
        first = still[0]
        yield (
            f"learning rate: {rates[first]:.3g} at step {steps[first]}, {rates[still[-1]]:.3g} at step "
            f"{steps[still[-1]]}; below {MIN_LR:g} no weight moves, and {len(still)} of {len(steps)} lines are"
        )
    chance = math.log(vocab_size)
    tail = losses[-max(1, len(losses) // 10) :]
    mean = float(np.mean(tail))
    if mean > chance - 0.1 and steps[-1] >= PLATEAU_STEPS:
        yield f"learns nothing: the last {len(tail)} losses are {mean:.4f} in the mean; guessing gives {chance:.4f}"
    if mean < LEAK * chance:
        leaks = next(i for i, loss in enumerate(losses) if loss < LEAK * chance)
        yield (
            f"too good: {losses[leaks]:.4f} at step {steps[leaks]}, {mean:.4f} in the mean of the last {len(tail)}; "
            f"below {LEAK * chance:.4f} the model sees what it is to predict, or a text that it knows by heart"
        )


def count_spikes(before: Iterable[float], new: Sequence[float]) -> int:
    """How many of the ``new`` losses lie 6 sigma or more above the 128 before them (at least 32)."""
    losses, spikes = np.asarray([*before, *new]), 0
    for i in range(len(losses) - len(new), len(losses)):
        window = losses[max(0, i - SPIKE_WINDOW) : i]
        if len(window) >= SPIKE_MIN:
            spikes += int(losses[i] > window.mean() + SPIKE_SIGMAS * window.std())
    return spikes
