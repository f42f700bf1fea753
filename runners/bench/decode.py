"""The price at inference: tokens/s of a prompt (prefill) and of what follows it (decode), and what the cache holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from llama_variants import ModelConfig, build_model
from llama_variants.pretrained import CACHE
from runners.bench.blocks import CONTROL
from runners.bench.measure import bandwidth, in_turn, rate, ratio, seconds_per_call
from runners.planning.recipe import Recipe
from runners.runs.machine import device_name
from runners.training import memory
from runners.training.compile import KINDS

NEW = 32
"""Tokens that a measurement decodes, or half of the context where that is less."""
TRIAD_BYTES = 1 << 28
"""Of each array of the triad: more than a processor's cache holds. A step that reads less says nothing of memory."""


class Generation:
    """Greedy generation of a batch with a cache of fixed size, in its two halves, as ``generate`` does it.

    On a card the step is what ``generate`` makes of a static cache: ``torch.compile`` with CUDA graphs
    (``reduce-overhead``). A prompt is never compiled there, and is not here.

    Args:
        config: the model.
        batch: rows.
        context: tokens that the cache has room for; all of them hold a key at the end.
        device: where.
        dtype: of weights and cache.
        compiled: whether the step is compiled.
    """

    def __init__(
        self, config: ModelConfig, *, batch: int, context: int, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        self.new, self.dtype = max(1, min(NEW, context // 2)), dtype
        self.model: Any = build_model(config, seed=0, device=device, dtype=dtype).eval()
        self.cache = StaticCache(config=self.model.config, max_cache_len=context)
        generator = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(config.vocab_size, (batch, context - self.new), generator=generator).to(device)
        call = self.model.__call__
        self._step = torch.compile(call, mode="reduce-overhead", fullgraph=True, dynamic=False) if compiled else call
        self.first = self.prefill()

    def prefill(self) -> Tensor:
        """Read the prompt into the cache; the token that follows it, (b, 1)."""
        self._rewind(0)
        return self._next(self.model, self.prompt)

    def decode(self) -> Tensor:
        """The ``new`` tokens after the first, (b, new), from a cache that holds the prompt alone."""
        self._rewind(self.prompt.shape[1])
        tokens = [self.first]
        for _ in range(self.new):
            tokens.append(self._next(self._step, tokens[-1]))
        return torch.cat(tokens[1:], dim=1)

    @property
    def kv_bytes(self) -> int:
        """Of the cache's own tensors."""
        return sum(part.nbytes for layer in self.cache.layers for part in (layer.keys, layer.values))

    @property
    def bytes_read(self) -> int:
        """Of a step: every weight once, but for an embedding that is no head, and all of the cache."""
        embedding = self.model.get_input_embeddings().weight
        looked_up = 0 if self.model.get_output_embeddings().weight is embedding else embedding.nbytes
        return sum(p.nbytes for p in self.model.parameters()) - looked_up + self.kv_bytes

    @torch.no_grad()
    def _next(self, call: Callable[..., Any], ids: Tensor) -> Tensor:
        logits = call(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE: self.cache}).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)

    def _rewind(self, length: int) -> None:
        """Forget what came after ``length`` tokens: what is written next lies over it."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)


def decode(
    recipe: Recipe,
    models: Mapping[str, ModelConfig],
    device: torch.device,
    points: Sequence[tuple[int, int]],
    rounds: int,
    least_s: float,
    compiled: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Prefill and decode of the control and of ``models``, in turn, at each (batch, context) of ``points``."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.train.precision]
    if compiled:
        torch._dynamo.config.recompile_limit = KINDS
    models = {CONTROL: recipe.model, **models}
    limit = bandwidth(device_name(device)) or (triad(device) if device.type == "cpu" else None)
    record: dict[str, Any] = {"bandwidth_bytes_per_s": limit}
    if limit:
        say(f"memory: {limit / 1e9:,.1f} GB/s{', by a triad' if device.type == 'cpu' else ', by the data sheet'}")
    rows: list[dict[str, Any]] = []
    for batch, context in points:
        make = partial(Generation, batch=batch, context=context, device=device, dtype=dtype, compiled=compiled)
        try:
            rows += _point({name: make(model) for name, model in models.items()}, device, rounds, least_s, limit)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            say(f"batch {batch}, context {context}: out of memory, left out")
            continue
        finally:
            if compiled:
                torch.compiler.reset()  # or the models of all points stay in its caches
            gc.collect()
            memory.release()
        told = ", ".join(f"{row['name']} {row['ratio']:.3f}" for row in rows[-len(models) + 1 :])
        say(f"batch {batch}, context {context}: decode over the control's: {told}")
    return record | {"rows": rows}


def _point(
    made: Mapping[str, Generation], device: torch.device, rounds: int, least_s: float, limit: float | None
) -> Iterator[dict[str, Any]]:
    halves = {"prefill": Generation.prefill, "decode": Generation.decode}
    seconds = {
        half: in_turn(
            {name: partial(seconds_per_call, partial(run, one), device) for name, one in made.items()},
            rounds=rounds,
            least_s=least_s,
        )
        for half, run in halves.items()
    }
    for name, one in made.items():
        (batch, prompt), own = one.prompt.shape, {half: taken[name] for half, taken in seconds.items()}
        config: ModelConfig = one.model.config.blocks
        row: dict[str, Any] = {"name": name, "batch": batch, "context": prompt + one.new, "prompt": prompt}
        row |= rate(own["decode"], batch * one.new) | ratio(own["decode"], seconds["decode"][CONTROL])
        read = rate(own["prefill"], batch * prompt) | ratio(own["prefill"], seconds["prefill"][CONTROL])
        row |= {f"prefill_{key}": value for key, value in read.items()}
        row["kv_bytes"] = one.kv_bytes
        row["kv_bytes_by_formula"] = (
            row["batch"] * row["context"] * config.kv_cache_values_per_token * one.dtype.itemsize
        )
        row["bytes_read"] = one.bytes_read
        if limit and one.bytes_read >= TRIAD_BYTES:
            row["of_bandwidth"] = one.bytes_read * row["tokens_per_s"] / batch / limit
        yield row | {"params": config.num_params, "seconds": own, "model": config.identity()}


def triad(device: torch.device, times: int = 8) -> float:
    """Bytes/s of a + s·b → c over three arrays that no cache holds, the fastest of ``times``.

    Counted as STREAM does, two reads and one write. Source: McCalpin, STREAM (1995).
    """
    a, b, c = (torch.ones(TRIAD_BYTES // 4, device=device) for _ in range(3))
    call = partial(torch.add, a, b, alpha=3.0, out=c)
    return 3 * TRIAD_BYTES / min(seconds_per_call(call, device, 1) for _ in range(times))
