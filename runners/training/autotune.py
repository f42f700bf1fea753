"""How a run computes its steps: compiled where that works and gives the same losses, and in what micro-batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llama_variants import LlamaForCausalLM
from runners.planning.recipe import TrainConfig
from runners.training import memory
from runners.training.compile import compile_model, eager, is_compiled, uncompile_model
from runners.training.determinism import autocast
from runners.training.gradients import gradients
from runners.training.loss import window_losses
from runners.training.optimizers.base import RecipeOptimizer
from runners.training.parallel import World

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""How far compiled losses may lie from eager ones, in nats at the level of guessing. Compiled code rounds to bfloat16
less often, and sums in another order; 4e-6 was seen in float32."""


class _DiffersError(Exception):
    """Compiled code gave another loss."""


def settle(
    model: LlamaForCausalLM,
    optimizer: RecipeOptimizer,
    batch: Tensor,
    config: TrainConfig,
    world: World,
    say: Callable[[str], None],
    *,
    compiled: bool,
    micro_batch: int = 0,
) -> tuple[int, bool]:
    """Compile ``model`` if asked to, find the micro-batch, and see that both work.

    What cannot be compiled, or gives other losses compiled than not, runs as it is written; a line says so.

    Args:
        model: on its device; its parameters are left alone, and without gradients.
        optimizer: its optimizer, which has not stepped.
        batch: this process's rows of a global batch (b, t).
        config: the recipe.
        world: the processes that share the run; all get the same answer.
        say: takes a line for people.
        compiled: whether to compile.
        micro_batch: windows at a time; as many as fit into memory when 0.

    Returns:
        The micro-batch, and whether the model is compiled.

    Raises:
        RuntimeError: when not even one window fits into memory.
    """
    if compiled:
        compile_model(model)
        count, failure = 0, ""
        try:
            asked = memory.even_parts(len(batch), micro_batch) if micro_batch else 0
            count = asked or find_micro_batch(model, optimizer, batch, config, world.size, say)
            count, _ = memory.largest_that_fits(
                count, lambda n: _check_compiled(model, batch[:n], config), say, len(batch), retry=world.size == 1
            )
        except Exception as error:  # Dynamo's, Inductor's and Triton's have no class in common
            if memory.is_out_of_memory(error):
                raise
            failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        model.zero_grad(set_to_none=True)
        if world.least(not failure):
            return world.least(count), True
        uncompile_model(model)
        memory.release()
        say(f"not compiled, and slower: {failure or 'another process of this run could not'}")
    return world.least(micro_batch or find_micro_batch(model, optimizer, batch, config, world.size, say)), False


def _check_compiled(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> None:
    """Raise unless ``batch`` (b, t) has the same losses compiled and eager, in training and in evaluation."""
    assert is_compiled(model)
    mode = model.training
    model.train()
    losses = [gradients(model, batch, config, World(), len(batch)) * config.batch_size / len(batch)]
    model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        losses.append(window_losses(model, batch, config.precision).mean())
        with eager(), autocast(batch.device, config.precision):  # by windows: eager code takes more memory
            expected = sum(float(model(part, labels=part).loss) for part in batch.split(1)) / len(batch)
    model.train(mode)
    for what, loss in zip(("training", "evaluation"), losses, strict=True):
        if not abs(float(loss) - expected) <= TOLERANCE[config.precision]:
            raise _DiffersError(f"loss {float(loss):.6f} in {what}, {expected:.6f} as it is written")


AT_ONCE = {"cpu": 4096, "accelerator": 65_536}
"""Tokens that go through the model at a time, at most. A processor has no launches to hide, and takes memory that it
does not have: what is killed for it cannot be tried again."""


def find_micro_batch(
    model: LlamaForCausalLM,
    optimizer: RecipeOptimizer,
    batch: Tensor,
    config: TrainConfig,
    world_size: int,
    say: Callable[[str], None],
) -> int:
    """The most windows of ``batch`` (b, t) that go through a training step at once: all of them, half, a quarter …

    Not more than ``AT_ONCE`` tokens; from there on nothing is gained. Tries a step up to its update, with the room
    held free that the optimizer's state will take, and the buckets in which several processes exchange gradients.
    Leaves no gradients.
    """
    buckets = 0 if world_size == 1 else sum(p.numel() for p in model.parameters())
    room = torch.empty(optimizer.state_numel() + buckets, device=batch.device)
    most = max(1, AT_ONCE["cpu" if batch.device.type == "cpu" else "accelerator"] // batch.shape[1])
    parameters = list(model.parameters())

    def attempt(count: int) -> None:
        # The second micro-batch needs more than the first, by the gradients that this left; a third needs no more.
        gradients(model, batch[: 2 * count], config, World(), count)
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)

    count, _ = memory.largest_that_fits(memory.even_parts(len(batch), most), attempt, say, len(batch))
    del room
    model.zero_grad(set_to_none=True)
    memory.release()
    return count
