"""The training loop. It is straight: read it from top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from llama_variants import LlamaForCausalLM
from runners.data.batches import Corpus
from runners.planning.components import SCHEDULE
from runners.planning.recipe import Recipe
from runners.runs.checkpoint import Checkpoint
from runners.training import gates, memory
from runners.training.compile import attention_kernels
from runners.training.determinism import seed_step
from runners.training.gradients import gradients, update
from runners.training.parallel import World
from runners.training.start import start
from runners.training.state import Training

ALONE = World()


def train(
    recipe: Recipe,
    seed: int,
    corpus: Corpus,
    device: torch.device,
    on_step: Callable[[Training], None],
    *,
    begin: Callable[[Training], None] = lambda training: None,
    say: Callable[[str], None] = lambda text: None,
    micro_batch: int | None = None,
    compile_mode: str = "auto",
    checkpoint: Checkpoint | None = None,
    world: World = ALONE,
) -> LlamaForCausalLM:
    """Train ``recipe`` with ``seed`` on ``corpus``, from ``checkpoint`` on where there is one.

    The seed sets the initial values and the order of the data; a batch is a function of (seed, step) alone, whatever
    the micro-batch and the number of processes. On an accelerator nothing waits for the device but ``on_step``.

    Args:
        recipe: what to train, on what, how long.
        seed: see above.
        corpus: the recipe's.
        device: where to compute.
        on_step: called after every step; logs, evaluates, saves, and stops by raising. Of a real run it is the
            ``Journal`` of `runners/execution/journal.py`. It changes nothing here.
        begin: called once before the first step, when all is compiled; stops by raising, too.
        say: takes a line for events.log and the terminal.
        micro_batch: windows that go through the model at a time; as many as fit into memory when None.
        compile_mode: whether to compile: on, off, or auto, which is as ``checkpoint`` has it, else on a GPU.
        checkpoint: where to resume.
        world: the processes that share the run.

    Returns:
        The trained model.

    Raises:
        RunInvalid: when a validity gate fails.
        CheckpointError: when ``checkpoint`` is of another model.
    """
    config = recipe.train
    with attention_kernels(device, config.deterministic):
        run = Training(recipe, seed, corpus, device, world, say)
        start(run, checkpoint, micro_batch, compile_mode)
        begin(run)
        model, optimizer, progress = run.model, run.optimizer, run.progress
        schedule = SCHEDULE[config.schedule.type](config.schedule, config.num_steps)
        parallel, parameters = world.wrap(model, device), list(model.parameters())
        watch, first_step = gates.GradientWatch(model), progress.step
        not_finite = torch.zeros((), device=device)  # becomes 1 with the first bad step, and stays
        model.train()
        gc.freeze()  # what is there stays to the end: no need to search it for garbage again and again
        run.start_clock()

        for step in range(first_step, config.num_steps):
            lr = config.lr * schedule(step)
            optimizer.set_lr(lr)
            batch = run.batch(step)

            def attempt(micro_batch: int, step: int = step, batch: Tensor = batch) -> Tensor:
                seed_step(seed, step, device, world.rank)
                return gradients(parallel, batch, config, world, micro_batch)

            progress.micro_batch, loss = memory.largest_that_fits(
                progress.micro_batch, attempt, say, len(batch), retry=world.size == 1
            )
            watch.after_backward(step - first_step)
            grad_norm, not_finite = update(parameters, optimizer, loss, config.max_grad_norm, not_finite)
            run.record(loss, grad_norm, lr)
            on_step(run)
    return model
