"""One run, from its recipe to its final loss. The loop is straight: read it from top to bottom."""

from __future__ import annotations

import gc
import hashlib
import math
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_variants import LlamaForCausalLM, build_model
from runners.data import Corpus
from runners.planning.recipe import Recipe, TrainConfig
from runners.runs.checkpoint import Checkpoint, Checkpoints
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import gates, memory
from runners.training.autotune import settle
from runners.training.compile import eager, wants_compile
from runners.training.determinism import autocast, make_deterministic, price_of_determinism, seed_step
from runners.training.gradients import gradients
from runners.training.loss import evaluate
from runners.training.optim import build_optimizer, lr_at, update
from runners.training.parallel import World

LOG_POINTS = 100  # logged steps of a run, whatever its length


ALONE = World()


@dataclass
class Progress:
    """What a run knows besides its tensors; with them, all that a resume needs."""

    step: int = 0  # done
    micro_batch: int = 0
    compiled: bool = False
    losses: deque[float] = field(default_factory=deque)  # the newest, one a step
    rates: list[float] = field(default_factory=list)  # tokens/s at logged steps
    spikes: int = 0
    val_loss: float | None = None
    wall_time_s: float = 0.0
    first_batch: str = ""
    last_batch: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint | None, config: TrainConfig) -> Progress:
        """A checkpoint's, or that of a new run."""
        stored = {name: checkpoint.state[name] for name in cls.__dataclass_fields__} if checkpoint else {}
        kept = max(gates.SPIKE_WINDOW, config.num_steps // 10)
        return cls(**stored | {"losses": deque(stored.get("losses", ()), maxlen=kept)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"losses": list(self.losses)}


def train(
    recipe: Recipe,
    seed: int,
    corpus: Corpus,
    run: RunFolder,
    checkpoints: Checkpoints,
    device: torch.device,
    *,
    micro_batch: int | None = None,
    compile_mode: str = "auto",
    stop_after: int | None = None,
    stop: StopRequest | None = None,
    checkpoint: Checkpoint | None = None,
    world: World = ALONE,
) -> LlamaForCausalLM:
    """Train ``recipe`` with ``seed`` on ``corpus`` and log to ``run``, from ``checkpoint`` on where there is one.

    The seed sets the initial values and the order of the data; a batch is a function of (seed, step) alone, whatever
    the micro-batch and the number of processes. On an accelerator nothing waits for the device between logged steps.

    Args:
        recipe: what to train, on what, how long.
        seed: see above.
        corpus: the recipe's.
        run: where to log.
        checkpoints: where to save, and when.
        device: where to compute.
        micro_batch: windows that go through the model at a time; as many as fit into memory when None.
        compile_mode: whether to compile: on, off, or auto, which is as ``checkpoint`` has it, else on a GPU.
        stop_after: a step, from 1, after which to save and leave, as if ``stop`` were requested.
        stop: says when to save and leave.
        checkpoint: where to go on.
        world: the processes that share the run.

    Returns:
        The trained model.

    Raises:
        RunInvalid: when a validity gate fails.
        Stopped: when ``stop`` was requested; the state after the step in hand is saved.
        CheckpointError: when ``checkpoint`` is of another model.
    """
    began = time.perf_counter()
    config, vocab_size = recipe.train, recipe.model.vocab_size
    stop = stop or StopRequest()

    def rows(step: int) -> np.ndarray:
        return corpus.train.batch(step, seed=seed, batch_size=config.batch_size, seq_len=config.seq_len)  # (b, t)

    def on_device(rows: np.ndarray) -> Tensor:
        batch = torch.from_numpy(rows[world.rows(len(rows))])
        # Only out of pinned memory does a copy to the card not wait for the steps before it.
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    # The recipe and the data, checked; the model and the optimizer, new or as the checkpoint has them.
    make_deterministic(config.deterministic)
    memory.reset_peak(device)
    windows = corpus.validation.windows(recipe.eval.num_windows, config.seq_len)
    bits_per_byte = 1 / (math.log(2) * corpus.validation.bytes_per_token)  # of one nat per token
    gates.check_recipe(config)
    gates.check_data(corpus, config)
    model = build_model(recipe.model, seed=seed, device=device)
    optimizer = build_optimizer(model, config)
    progress = Progress.of(checkpoint, config)
    if checkpoint:
        checkpoint.restore(model, optimizer)
        gates.check_continues(
            batch_id(rows(progress.step - 1)), progress.last_batch, progress.first_batch, progress.step
        )
    if world.least(progress.step) != progress.step:
        raise RuntimeError("the processes of this run do not see the same checkpoints: is the folder shared?")

    # The model, checked; compiled or not, and how much of a batch goes through it at a time.
    probe = on_device(rows(progress.step))
    gates.preflight(model, probe)
    kept = checkpoint is not None and compile_mode == "auto"
    progress.micro_batch, progress.compiled = settle(
        model,
        probe,
        config,
        world,
        checkpoints.say,
        compiled=progress.compiled if kept else wants_compile(compile_mode, device),
        micro_batch=micro_batch or progress.micro_batch,
    )
    if config.deterministic and not checkpoint:
        probe = probe[: progress.micro_batch]
        price = price_of_determinism(lambda: gradients(model, probe, config, ALONE, len(probe)), device)
        checkpoints.say(
            f"deterministic: {price:.2f} times the time of a step without (forward and backward, median of 5 pairs)"
        )
    del probe
    parallel, parameters = world.wrap(model, device), list(model.parameters())
    watch = gates.GradientWatch(model)
    model.train()

    pending: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of the newest steps, still on the device
    not_finite = torch.zeros((), device=device)  # becomes 1 with the first bad step, and stays

    def read_pending() -> float:
        """Wait for the device; check the losses and keep them. Returns the newest gradient norm."""
        losses, norms = torch.stack([torch.stack(pair) for pair in pending], dim=1).tolist()
        pending.clear()
        if (bad := gates.first_not_finite(losses, norms)) is not None:
            step = progress.step - len(losses) + bad  # from 0; no update was applied since, so it can be seen again
            seed_step(seed, step, device, world.rank)
            batch = torch.from_numpy(rows(step)).to(device)  # the rows of all processes: any may be to blame
            with eager(), autocast(device, config.precision):
                cause = gates.where_not_finite(model, batch.split(progress.micro_batch))
            places = corpus.train.places(step, seed=seed, batch_size=config.batch_size, seq_len=config.seq_len)
            raise gates.RunInvalid(
                f"step {step + 1}: loss {losses[bad]}, gradient norm {norms[bad]}; the update was not applied; first "
                f"not finite: {cause}; batch {batch_id(rows(step))} of seed {seed}, training windows {places.tolist()}"
            )
        progress.spikes += gates.count_spikes(progress.losses, losses)
        progress.losses.extend(losses)
        return float(norms[-1])

    gc.freeze()  # what is there stays to the end: no need to search it for garbage again and again
    log_every = max(1, config.num_steps // LOG_POINTS)
    start, earlier_s = progress.step, progress.wall_time_s  # before which it was stopped
    mark, unlogged = time.perf_counter(), 0  # when the last line was logged, and the steps since

    for step in range(start, config.num_steps):
        ids = rows(step)
        if step == 0:
            progress.first_batch = batch_id(ids)
        lr = lr_at(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = on_device(ids)

        def attempt(micro_batch: int, step: int = step, batch: Tensor = batch) -> Tensor:
            seed_step(seed, step, device, world.rank)
            return gradients(parallel, batch, config, world, micro_batch)

        progress.micro_batch, loss = memory.largest_that_fits(
            progress.micro_batch, attempt, checkpoints.say, retry=world.size == 1
        )
        watch.after_backward(step - start)
        grad_norm, not_finite = update(parameters, optimizer, loss, config.max_grad_norm, not_finite)
        pending.append((loss, grad_norm))

        done = progress.step = step + 1
        unlogged += 1
        last = done == config.num_steps
        evaluates = done % recipe.eval.every_steps == 0 or last
        if done % log_every == 0 or done == 1 or evaluates:
            norm = read_pending()
            if done == 1:
                gates.check_first_loss(progress.losses[0], vocab_size)
            gates.check_learning(done, progress.losses, optimizer.param_groups[0]["lr"], vocab_size, config)
            step_time_s = (time.perf_counter() - mark) / unlogged
            progress.rates.append(config.tokens_per_step / step_time_s)
            tokens = done * config.tokens_per_step
            metrics = {
                "tokens": tokens,
                "epochs": corpus.train.epochs(tokens, config.seq_len),
                "train/loss": progress.losses[-1],
                "train/grad_norm": norm,
                "train/lr": lr,
                "train/loss_spikes": progress.spikes,
                "throughput/tokens_per_s": progress.rates[-1],
                "throughput/step_time_s": step_time_s,
                "memory/micro_batch": progress.micro_batch,
                "memory/peak_bytes": memory.peak_bytes(device),
            }
            if evaluates:
                result = evaluate(model, windows, batch_size=progress.micro_batch, precision=config.precision)
                progress.val_loss = result.loss_nats
                metrics |= {
                    "val/loss": result.loss_nats,
                    "val/bits_per_byte": result.loss_nats * bits_per_byte,
                }
            if last:
                metrics |= {
                    "final/val_loss": result.loss_nats,
                    "final/val_bits_per_byte": result.loss_nats * bits_per_byte,
                    "final/val_loss_se": result.se_nats,
                    "final/train_loss": statistics.fmean(list(progress.losses)[-max(1, config.num_steps // 10) :]),
                    "final/tokens_per_s": statistics.median(progress.rates),
                    "final/compiled": float(progress.compiled),
                    "final/peak_memory_bytes": memory.peak_bytes(device),
                    "final/wall_time_s": earlier_s + time.perf_counter() - began,
                }
            if world.first:
                run.log(done, metrics)
            mark, unlogged = time.perf_counter(), 0

        signum, saves = world.most(stop.signum or 0, world.first and checkpoints.due())
        leaves = bool(signum) or done == stop_after
        if (leaves or saves) and not last:
            pause = time.perf_counter()
            if pending:
                read_pending()  # nothing is saved that was not looked at
            progress.last_batch = batch_id(ids)
            progress.wall_time_s = earlier_s + time.perf_counter() - began
            if world.first:
                checkpoints.save(model, optimizer, progress.to_dict())
            if leaves:
                checkpoints.wait()
                if world.first and checkpoints.saved != done:  # it is the last chance
                    checkpoints.save(model, optimizer, progress.to_dict())
                    checkpoints.wait()
                raise Stopped(signum, "" if not world.first or checkpoints.saved == done else ", without saving")
            mark += time.perf_counter() - pause  # a save is no part of a step's time

    return model


def batch_id(rows: np.ndarray) -> str:
    """A batch's name: 16 hex digits over its tokens."""
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]
