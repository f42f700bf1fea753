"""One run, from its recipe to its final loss. The loop is straight: read it from top to bottom."""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

from llama_variants import build_model
from runners import health
from runners.data import Corpus
from runners.determinism import autocast
from runners.evaluate import evaluate
from runners.optim import build_optimizer, lr_at
from runners.recipe import Recipe
from runners.store import RunFolder

LINUX = platform.system() == "Linux"
LOG_POINTS = 100  # logged steps of a run, whatever its length


def train(recipe: Recipe, seed: int, corpus: Corpus, run: RunFolder, device: torch.device) -> None:
    """Train ``recipe`` with ``seed`` on ``corpus`` and log to ``run``.

    The seed sets both the initial values and the order of the data; a batch is a function of (seed, step) alone.
    On an accelerator nothing waits for the device between two logged steps.

    Raises:
        RunInvalid: when a validity gate fails.
    """
    began = time.perf_counter()
    config = recipe.train
    reset_peak_memory(device)
    model = build_model(recipe.model, seed=seed, device=device)
    optimizer = build_optimizer(model, config)
    windows = corpus.validation.windows(recipe.eval.num_windows, config.seq_len)
    bits_per_byte = 1 / (math.log(2) * corpus.validation.bytes_per_token)  # of one nat per token
    log_every = max(1, config.num_steps // LOG_POINTS)

    def batch(step: int) -> torch.Tensor:
        ids = corpus.train.batch(step, seed=seed, batch_size=config.batch_size, seq_len=config.seq_len)
        batch = torch.from_numpy(ids)  # (b, t)
        # Only out of pinned memory does a copy to the card not wait for the steps before it.
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    health.preflight(model, batch(0))
    watch = health.GradientWatch(model)
    losses: list[torch.Tensor] = []  # of the steps since the last log, still on the device
    grad_norms: list[torch.Tensor] = []
    all_losses: list[float] = []
    rates: list[float] = []
    model.train()
    mark = time.perf_counter()

    for step in range(config.num_steps):
        ids = batch(step)
        lr = lr_at(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast(device, config.precision):
            loss = model(ids, labels=ids).loss
        loss.backward()
        watch.after_backward(step)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        # A non-finite loss or gradient skips the update on the device; it is reported at the next logged step.
        optimizer.found_inf = (~torch.isfinite(loss.detach() + grad_norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        grad_norms.append(grad_norm)

        done = step + 1
        last = done == config.num_steps
        evaluates = done % recipe.eval.every_steps == 0 or last
        if done % log_every == 0 or done == 1 or evaluates:
            values = torch.stack([*losses, *grad_norms]).tolist()  # waits for the device
            count = len(losses)
            health.check_finite(done - count + 1, values[:count], values[count:])
            if done == 1:
                health.check_first_loss(values[0], recipe.model.vocab_size)
            step_time_s = (time.perf_counter() - mark) / count
            rates.append(config.tokens_per_step / step_time_s)
            all_losses += values[:count]
            metrics = {
                "tokens": done * config.tokens_per_step,
                "train/loss": values[count - 1],
                "train/grad_norm": values[-1],
                "train/lr": lr,
                "throughput/tokens_per_s": rates[-1],
                "throughput/step_time_s": step_time_s,
                "memory/peak_bytes": peak_memory_bytes(device),
            }
            losses, grad_norms = [], []
            if evaluates:
                result = evaluate(model, windows, batch_size=config.batch_size, precision=config.precision)
                metrics |= {
                    "val/loss": result.loss_nats,
                    "val/bits_per_byte": result.loss_nats * bits_per_byte,
                }
            if last:
                metrics |= {
                    "final/val_loss": result.loss_nats,
                    "final/val_bits_per_byte": result.loss_nats * bits_per_byte,
                    "final/val_loss_se": result.se_nats,
                    "final/train_loss": statistics.fmean(all_losses[-max(1, config.num_steps // 10) :]),
                    "final/tokens_per_s": statistics.median(rates),
                    "final/peak_memory_bytes": peak_memory_bytes(device),
                    "final/wall_time_s": time.perf_counter() - began,
                }
            run.log(done, metrics)
            mark = time.perf_counter()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of earlier runs in this process, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX:
        with contextlib.suppress(OSError):  # some kernels and sandboxes have no such file
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of allocated device memory; on a CPU, of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if LINUX:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("VmHWM"):
                return int(row.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if platform.system() == "Darwin" else peak * 1024
