"""How a run computes its steps: compiled where that works and gives the same losses, and in what micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
DISTANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""How far compiled gradients and logits may lie from eager ones, as a share of their norm.

Seen at 135M, 2 windows of 64 tokens, on a CPU: all rounding to bfloat16 there is moves gradients by 0.048 and logits by
0.028; attention that is not causal by 1.44 and 1.33, that sees one position ahead by 1.10 and 0.84, of another scale by
1.14 and 1.05, with heads grouped otherwise by 1.48 and 1.41, with keys turned one position too far by 0.95 and 0.60.
Losses alone would not do: a model that guesses does so whatever it sees, and over the 32,768 tokens of a step the mean
loss of these kernels differs by some 0.007 (1.3 nats a token, by chance in either direction).
"""


class _DiffersError(Exception):
    """Compiled code gave something else."""


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
            count, note = memory.largest_that_fits(
                count, lambda n: _check_compiled(model, batch[:n], config), say, len(batch), retry=world.size == 1
            )
            if note:
                say(note)
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


def _check_compiled(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> str:
    """Raise unless ``batch`` (b, t) has the same losses, gradients and logits compiled as eager.

    Returns why gradients could not be compared, in words; nothing where they were.
    """
    assert is_compiled(model)
    mode, parts = model.training, batch.split(1)  # by windows where it is eager, which takes more memory
    model.train()
    losses = {"training": gradients(model, batch, config, World(), len(batch)) * config.batch_size / len(batch)}
    note = ""
    try:
        if not _check_gradients(model, batch, config):
            note = "compiled gradients are not compared with eager ones: a block draws random numbers"
            del losses["training"]  # which is as random
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        note = "compiled gradients are not compared with eager ones, which take more memory than there is"
    model.zero_grad(set_to_none=True)
    memory.release()
    model.eval()
    expected, apart, size = 0.0, torch.zeros((), device=batch.device), torch.zeros((), device=batch.device)
    with torch.no_grad():
        losses["evaluation"] = window_losses(model, batch, config.precision).mean()
        with autocast(batch.device, config.precision):
            logits = model(batch, use_cache=False).logits  # (b, t, v)
            with eager():
                for part, quick in zip(parts, logits.split(1), strict=True):
                    slow = model(part, labels=part)
                    expected += float(slow.loss) / len(batch)
                    apart += (quick.float() - slow.logits.float()).square().sum()
                    size += slow.logits.float().square().sum()
    model.train(mode)
    _compare("logits", apart, size, config)
    for what, loss in losses.items():
        if not abs(float(loss) - expected) <= TOLERANCE[config.precision]:
            raise _DiffersError(f"loss {float(loss):.6f} in {what}, {expected:.6f} as it is written")
    return note


def _check_gradients(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> bool:
    """Raise unless the gradients that compiled code left are eager code's. False where eager ones differ as much.

    Such is a model with dropout: it draws other numbers each time, and can be compared in evaluation alone.
    """

    def written() -> list[Tensor]:
        with eager():
            gradients(model, batch, config, World(), 1)  # into new tensors
        return _taken(model)

    found, first = _taken(model), written()
    torch._foreach_sub_(found, first)  # in place: a copy of all gradients would take memory, too
    apart, size = _square(found), _square(first)
    del found
    try:
        _compare("gradients", apart, size, config)
    except _DiffersError:
        torch._foreach_sub_(first, written())
        if float(_square(first)) <= DISTANCE[config.precision] ** 2 * float(size):
            raise
        return False
    return True


def _taken(model: LlamaForCausalLM) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """The square of their norm, all taken as one vector."""
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum()


def _compare(what: str, apart: Tensor, size: Tensor, config: TrainConfig) -> None:
    """Raise unless the square of a difference's norm is small beside that of what differs."""
    if not float(apart) <= DISTANCE[config.precision] ** 2 * float(size):
        far = math.sqrt(float(apart) / float(size)) if float(size) else math.inf
        raise _DiffersError(f"{what} differ by {far:.2g} of their norm from those as it is written")


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

    Not more than ``AT_ONCE`` tokens; from there on nothing is gained. Tries a step up to its update and an evaluation,
    with the room held free that the optimizer's state will take, and the buckets in which several processes exchange
    gradients. Leaves no gradients. Where another run is on the card too, what it has taken so far counts; when it takes
    more, the loop goes on with less at a time.
    """
    buckets = 0 if world_size == 1 else sum(p.numel() for p in model.parameters())
    room = torch.empty(optimizer.state_numel() + buckets, device=batch.device)
    most = max(1, AT_ONCE["cpu" if batch.device.type == "cpu" else "accelerator"] // batch.shape[1])
    parameters = list(model.parameters())

    mode = model.training

    def attempt(count: int) -> None:
        # The second micro-batch needs more than the first, by the gradients that this left; a third needs no more.
        model.train()
        gradients(model, batch[: 2 * count], config, World(), count)
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        model.zero_grad(set_to_none=True)
        model.eval()  # where it is not compiled, an evaluation can take more than a step
        with torch.no_grad():
            window_losses(model, batch[:count], config.precision)

    count, _ = memory.largest_that_fits(memory.even_parts(len(batch), most), attempt, say, len(batch))
    del room
    model.train(mode)
    model.zero_grad(set_to_none=True)
    memory.release()
    return count
