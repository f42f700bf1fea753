"""The gradients of one step, in as many micro-batches as memory asks for, and the update by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runners.planning.recipe import TrainConfig
from runners.training.determinism import autocast
from runners.training.optimizers.base import RecipeOptimizer
from runners.training.parallel import World


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
    # One context around all of them: autocast keeps the weights that it has cast until its outermost context ends.
    with autocast(batch.device, config.precision):
        for i, part in enumerate(parts, start=1):
            with world.gradients(model, last=i == len(parts)):
                loss = model(part, labels=part, num_items_in_batch=predicted).loss
                with autocast(batch.device, "float32"):  # off: gradients come in the types of what they are of
                    # Gradients are averaged over the processes, and their sum is meant.
                    (loss * world.size).backward()
            total += loss.detach()
    return world.sum(total)


def update(
    parameters: Sequence[Tensor], optimizer: RecipeOptimizer, loss: Tensor, max_grad_norm: float, not_finite: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip the gradients of a model's ``parameters``, step, and clear them; nothing waits for the device.

    A ``loss`` or gradient that is not finite skips this update and all later ones: ``not_finite`` becomes 1, and stays.

    Returns:
        The gradients' norm before clipping, and the new ``not_finite``.
    """
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    not_finite = torch.maximum(not_finite, (~torch.isfinite(loss + grad_norm)).float())
    optimizer.found_inf = not_finite
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm, not_finite
