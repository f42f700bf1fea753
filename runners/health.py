"""Validity gates: a run that fails one is invalid, whatever its loss says."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants import LlamaForCausalLM

GRADIENT_STEPS = 3  # a gate initialised at zero may need a step or two before a gradient passes it


class RunInvalid(Exception):  # noqa: N818 (a verdict on the run, not an error of the program)
    """A validity gate failed; the message is the reason."""


@torch.no_grad()
def preflight(model: LlamaForCausalLM, batch: Tensor) -> None:
    """Probe a new model on a few training windows ``batch`` (b, t). Raises RunInvalid with the first reason found.

    Three probes: a changed last token moves no earlier logit (causality); a changed first token moves later ones
    (content); the loss is that of predicting the *next* token (label shift). And tied weights are one tensor.
    """
    model.eval()
    batch = batch[:2]
    logits = model(batch).logits.float()  # (b, t, v)
    scale = logits.std()
    vocab_size = logits.shape[-1]

    changed = batch.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocab_size
    moved = (model(changed).logits.float() - logits)[:, :-1].abs().max()
    if moved > 1e-3 * scale:
        raise RunInvalid(f"causality: changing the last token moved an earlier logit by {moved:.3g}")

    changed = batch.clone()
    changed[:, 0] = (changed[:, 0] + 1) % vocab_size
    moved = (model(changed).logits.float() - logits)[:, 1:].abs().max()
    if not moved > 1e-6 * scale:
        raise RunInvalid(f"content: changing the first token moved later logits by only {moved:.3g}")

    loss = model(batch, labels=batch).loss.item()
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).item()
    if not math.isclose(loss, shifted, rel_tol=1e-3):
        raise RunInvalid(f"label shift: the loss is {loss:.4f}, that of predicting the next token {shifted:.4f}")

    if model.config.tie_word_embeddings != (model.lm_head.weight is model.model.embed_tokens.weight):
        raise RunInvalid("tied head: the weights are not what the configuration says")
    model.train()


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
        """Call before the gradients are cleared, with the step's number from 0. Raises RunInvalid after the third."""
        if step >= GRADIENT_STEPS:
            return
        self._waiting = {name: p for name, p in self._waiting.items() if p.grad is None or not p.grad.any()}
        if step == GRADIENT_STEPS - 1 and self._waiting:
            names = ", ".join(list(self._waiting)[:5])
            raise RunInvalid(f"no gradient in {len(self._waiting)} parameters after {GRADIENT_STEPS} steps: {names}")


def check_finite(first_step: int, losses: list[float], grad_norms: list[float]) -> None:
    """Raises RunInvalid naming the first step whose loss or gradient norm is not finite; steps count from 1."""
    for step, (loss, norm) in enumerate(zip(losses, grad_norms, strict=True), start=first_step):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunInvalid(f"step {step}: loss {loss}, gradient norm {norm}; the update was not applied")
