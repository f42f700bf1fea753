"""The gradients of one step, in as many micro-batches as memory asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llama_variants import LlamaForCausalLM
from runners import memory
from runners.determinism import autocast
from runners.parallel import World
from runners.recipe import TrainConfig

AT_ONCE = {"cpu": 4096, "accelerator": 65_536}
"""Tokens that go through the model at a time, at most. A processor has no launches to hide, and takes memory that it
does not have: what is killed for it cannot be tried again."""


def gradients(model: nn.Module, batch: Tensor, config: TrainConfig, world: World, micro_batch: int) -> Tensor:
    """Leave the gradients of the global batch's mean loss in the parameters, and return that loss, in nats.

    Each micro-batch counts with the tokens it predicts, so that any split gives the whole batch's gradients, but for
    rounding.

    Args:
        model: as :meth:`World.wrap` gives it.
        batch: this process's rows of the global batch (b, t).
        config: the recipe.
        world: who else computes on the global batch.
        micro_batch: rows that go through the model at a time.
    """
    model.zero_grad(set_to_none=True)  # an attempt before this one may have run out of memory half-way
    predicted = config.batch_size * (config.seq_len - 1)  # tokens of the global batch
    parts = batch.split(micro_batch)
    total = torch.zeros((), device=batch.device)
    for i, part in enumerate(parts, start=1):
        with world.gradients(model, last=i == len(parts)):
            with autocast(batch.device, config.precision):
                loss = model(part, labels=part, num_items_in_batch=predicted).loss
            (loss * world.size).backward()  # gradients are averaged over the processes, and their sum is meant
        total += loss.detach()
    return world.sum(total)


def find_micro_batch(
    model: LlamaForCausalLM, batch: Tensor, config: TrainConfig, world_size: int, say: Callable[[str], None]
) -> int:
    """The most windows of ``batch`` (b, t) that go through a training step at once: all of them, half, a quarter …

    Not more than ``AT_ONCE`` tokens; from there on nothing is gained. Tries it, forward and backward, with the room
    held free that AdamW's two moments will take, and the buckets in which several processes exchange gradients. Leaves
    no gradients.
    """
    size = sum(p.numel() for p in model.parameters())
    room = torch.empty((2 if world_size == 1 else 3) * size, device=batch.device)
    # One micro-batch shows what fits; the others would only take time.
    most = max(1, AT_ONCE["cpu" if batch.device.type == "cpu" else "accelerator"] // batch.shape[1])
    count, _ = memory.largest_that_fits(
        min(len(batch), most), lambda count: gradients(model, batch[:count], config, World(), count), say
    )
    del room
    model.zero_grad(set_to_none=True)
    memory.release()
    return count
