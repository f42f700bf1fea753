"""The throughput of every block beside the control's, pair by pair; and curves over micro-batch, window and size."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llama_variants import ModelConfig
from llama_variants.errors import ConfigError
from llama_variants.registry import FAMILIES
from runners.bench.contenders import ours
from runners.bench.measure import Measure, in_turn, rate, ratio, seconds_per_call
from runners.planning.recipe import Recipe
from runners.training import memory

CONTROL, AGAIN = "control", "again"


def variants(model: ModelConfig) -> Iterator[tuple[str, ModelConfig]]:
    """The control once more, then every registered block in place of the control's own."""
    yield AGAIN, model
    for family, registry in FAMILIES.items():
        for name in registry.names:
            block = {"type": name, **registry.config_class(name).example}
            try:
                variant = model.override({family: block})
            except ConfigError:  # no example for this shape
                continue
            if variant != model:
                yield f"{family}={name}", variant


def blocks(
    recipe: Recipe,
    device: torch.device,
    only: Sequence[str],
    rounds: int,
    least_s: float,
    compiled: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Each variant of ``only`` (all when empty) in turn with the control; ``again`` is the measurement's own noise."""
    rows = []
    for name, model in variants(recipe.model):
        if only and name not in only and name != AGAIN:
            continue
        pair = {CONTROL: recipe, name: replace(recipe, model=model)}
        seconds = _times(pair, device, rounds, least_s, compiled)
        if seconds is None:
            say(f"{name}: out of memory, left out")
            continue
        tokens = recipe.train.tokens_per_step
        row = {"name": name, **rate(seconds[name], tokens), **ratio(seconds[name], seconds[CONTROL])}
        row |= {"params": model.num_params, "flops": model.flops_per_token(recipe.train.seq_len), "seconds": seconds}
        rows.append(row)
        say(
            f"{name}: {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}] times the control's tokens/s"
        )
    return {"rows": rows}


def scaling(
    recipe: Recipe, device: torch.device, rounds: int, least_s: float, compiled: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tokens/s and memory against the micro-batch, the window and the number of layers, one point after another."""
    config, model = recipe.train, recipe.model
    curves: dict[str, dict[str, tuple[Recipe, int | None]]] = {
        "micro-batch (windows)": {str(n): (recipe, n) for n in _doubling(1, config.batch_size)},
        "window (tokens)": {
            str(t): (_with(recipe, {"max_position_embeddings": t}, seq_len=t), None)
            for t in _doubling(config.seq_len // 4, config.seq_len * 4)
            if config.tokens_per_step % t == 0
        },
        "layers": {
            str(n): (_with(recipe, {"num_hidden_layers": n}), None)
            for n in _doubling(max(1, model.num_hidden_layers // 4), model.num_hidden_layers * 2)
        },
    }
    rows = []
    for axis, points in curves.items():
        for point, (own, micro_batch) in points.items():
            memory.reset_peak(device)
            size = micro_batch or own.train.batch_size
            times = _times({point: own}, device, rounds, least_s, compiled, size)
            if times is None:
                say(f"{axis} {point}: out of memory, left out")
                continue
            row: dict[str, Any] = {"axis": axis, "point": int(point), "seconds": times[point]}
            row |= rate(times[point], own.train.tokens_per_step)
            row |= {"peak_memory_bytes": memory.peak_bytes(device), "params": own.model.num_params}
            rows.append(row)
            say(f"{axis} {point}: {row['tokens_per_s']:,.0f} tokens/s, {row['peak_memory_bytes'] / 2**30:.2f} GiB")
    return {"rows": rows}


def _times(
    recipes: Mapping[str, Recipe],
    device: torch.device,
    rounds: int,
    least_s: float,
    compiled: bool,
    micro_batch: int = 0,
) -> dict[str, list[float]] | None:
    """Seconds of a step of each recipe, in turn; None where they do not fit into memory together."""
    measures: dict[str, Measure] = {}
    try:
        for name, recipe in recipes.items():
            config = recipe.train
            shape = (config.batch_size, config.seq_len)
            batch = torch.randint(recipe.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
            _, step = ours(recipe, device, micro_batch or config.batch_size, compiled)
            measures[name] = partial(seconds_per_call, partial(step, batch.to(device)), device)
        return in_turn(measures, rounds=rounds, least_s=least_s)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return None
    finally:
        measures.clear()
        gc.collect()
        memory.release()


def _with(recipe: Recipe, delta: Mapping[str, Any], **train: Any) -> Recipe:
    return replace(recipe, model=recipe.model.override(delta), train=recipe.train.model_copy(update=train))


def _doubling(first: int, last: int) -> list[int]:
    return [first * 2**i for i in range((last // first).bit_length()) if first * 2**i <= last]
