"""Who is compared: this project, transformers' Llama, litgpt and torchtitan, each called as its users call it.

All train one model of one shape (tied head, rotary theta and width as in the base), on the same batches, with fused
AdamW, clipping and, on a GPU, bfloat16 autocast over float32 weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants import build_model
from runners.planning.components import OPTIMIZER
from runners.planning.recipe import Recipe
from runners.training import memory
from runners.training.compile import attention_kernels, compile_model
from runners.training.determinism import autocast, make_deterministic, set_as_trained
from runners.training.gradients import gradients, update
from runners.training.optimizers.adamw import AdamW
from runners.training.parallel import World

Step = Callable[[Tensor], Tensor]
"""One optimizer step on a batch (b, t) of token ids; gives the loss, still on the device."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """``make(recipe, device, micro_batch)`` gives a model and its training step."""

    name: str
    make: Callable[[Recipe, torch.device, int], tuple[nn.Module, Step]]
    compiles: bool = False
    needs: str = ""  # a package of the bench's own environment

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


def ours(recipe: Recipe, device: torch.device, micro_batch: int, compiled: bool = False) -> tuple[nn.Module, Step]:
    """What :func:`runners.execution.one_run.execute` sets, and what the loop does between two logged steps."""
    make_deterministic(recipe.train.deterministic)
    memory.keep_freed(device)
    model = build_model(recipe.model, seed=0, device=device).train()
    set_as_trained(model, recipe.train, end_id=0)
    if compiled:
        compile_model(model)
    optimizer = OPTIMIZER[recipe.train.optimizer.type](recipe.train.optimizer, model)
    optimizer.set_lr(recipe.train.lr)
    not_finite, parameters = torch.zeros((), device=device), list(model.parameters())

    def step(batch: Tensor) -> Tensor:
        nonlocal not_finite
        with attention_kernels(device, recipe.train.deterministic):
            loss = gradients(model, batch, recipe.train, World(), micro_batch)
        _, not_finite = update(parameters, optimizer, loss, recipe.train.max_grad_norm, not_finite)
        return loss

    return model, step


def _ours_compiled(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    return ours(recipe, device, micro_batch, compiled=True)


def _ours_deterministic(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    """With kernels that give equal bits on every call: beside ``ours-compiled``, what those cost."""
    fixed = replace(recipe, train=recipe.train.model_copy(update={"deterministic": True}))
    return ours(fixed, device, micro_batch, compiled=True)


def _transformers(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    from transformers import LlamaForCausalLM

    from llama_variants.model import LlamaVariantConfig

    config = LlamaVariantConfig.of(recipe.model).to_llama()
    assert config is not None, "the base is no stock Llama"
    config._attn_implementation = "sdpa"
    model: Any = LlamaForCausalLM(config).train()
    model.to(device)
    return model, _plain(model, lambda ids: model(ids, labels=ids, use_cache=False).loss, recipe, micro_batch)


def _transformers_compiled(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    model, _ = _transformers(recipe, device, micro_batch)
    quick = torch.compile(model)
    return model, _plain(model, lambda ids: quick(ids, labels=ids, use_cache=False).loss, recipe, micro_batch)


def _litgpt(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    """As its pretrain.py has it: a compiled GPT and its chunked cross-entropy."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape, attention, mlp = recipe.model, recipe.model.attention, recipe.model.mlp
    config = Config.from_name(
        "SmolLM2-135M",
        block_size=recipe.train.seq_len,
        n_layer=shape.num_hidden_layers,
        n_embd=shape.hidden_size,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_head=attention.num_attention_heads,  # type: ignore[attr-defined]
        n_query_groups=attention.kv_heads,  # type: ignore[attr-defined]
        head_size=attention.head_dim,  # type: ignore[attr-defined]
        intermediate_size=mlp.width(shape.hidden_size),  # type: ignore[attr-defined]
        rope_base=int(shape.rotary.theta),  # type: ignore[attr-defined]
    )
    model = GPT(config).to(device).train()
    model.transformer.wte.weight = model.lm_head.weight  # its option tie_embeddings
    run = torch.compile(model) if device.type == "cuda" else model

    def loss(ids: Tensor) -> Tensor:
        return chunked_cross_entropy(run(ids)[:, :-1], ids[:, 1:], chunk_size=0)

    return model, _plain(model, loss, recipe, micro_batch)


def _torchtitan(recipe: Recipe, device: torch.device, micro_batch: int) -> tuple[nn.Module, Step]:
    """Its Llama 3, blocks compiled one by one as its parallelize.py does; the head is tied, which it is not there."""
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer

    shape, attention = recipe.model, recipe.model.attention
    args = TransformerModelArgs(
        dim=shape.hidden_size,
        n_layers=shape.num_hidden_layers,
        n_heads=attention.num_attention_heads,  # type: ignore[attr-defined]
        n_kv_heads=attention.kv_heads,  # type: ignore[attr-defined]
        vocab_size=shape.vocab_size,
        multiple_of=8,
        rope_theta=shape.rotary.theta,  # type: ignore[attr-defined]
        max_seq_len=recipe.train.seq_len,
    )
    model = Transformer(args)
    with torch.no_grad():
        model.init_weights()
        model.tok_embeddings.weight.normal_(std=0.02)  # its own has a spread of 1, too wide for a head
    model.output.weight = model.tok_embeddings.weight
    model = model.to(device).train()
    if device.type == "cuda":
        for block in model.layers.values():
            block.compile(fullgraph=True)

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:  # as its components/loss.py
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(0, 1))

    loss_of = torch.compile(cross_entropy) if device.type == "cuda" else cross_entropy
    return model, _plain(model, lambda ids: loss_of(model(ids)[:, :-1], ids[:, 1:]), recipe, micro_batch)


def _plain(model: nn.Module, loss_of: Step, recipe: Recipe, micro_batch: int) -> Step:
    """The training step that a user of the peers writes, or has from a trainer."""
    config, settings = recipe.train, recipe.train.optimizer
    assert isinstance(settings, AdamW.Config), "the peers are measured with AdamW"
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def step(batch: Tensor) -> Tensor:
        total = torch.zeros((), device=batch.device)
        for part in batch.split(micro_batch):
            with autocast(batch.device, config.precision):
                loss = loss_of(part) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


REFERENCE = "transformers"
CONTENDERS = (
    Contender(name="ours", make=ours),
    Contender(name="ours-compiled", make=_ours_compiled, compiles=True),
    Contender(name="ours-deterministic", make=_ours_deterministic, compiles=True),
    Contender(name=REFERENCE, make=_transformers),
    Contender(name="transformers-compiled", make=_transformers_compiled, compiles=True),
    Contender(name="litgpt", make=_litgpt, needs="litgpt"),
    Contender(name="torchtitan", make=_torchtitan, needs="torchtitan"),
)


def first_loss_is_fair(loss: float, vocab_size: int) -> bool:
    """Whether a first loss is that of a model which guesses: one that is wired up wrongly is no peer."""
    return abs(loss - math.log(vocab_size)) < 1.5
