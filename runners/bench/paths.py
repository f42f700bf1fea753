"""What is around the steps: reading batches, saving and restoring checkpoints, and runs side by side on a processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis.store.stratum import Stratum
from llama_variants import build_model
from runners.bench.measure import in_turn, rate, ratio, seconds_per_call
from runners.data.batches import Corpus
from runners.execution.local import LocalLauncher
from runners.execution.one_run import RunOptions
from runners.planning.components import OPTIMIZER
from runners.planning.recipe import Recipe, run_key
from runners.runs.checkpoint import Checkpoints
from runners.runs.folder import RunFolder


def paths(
    recipe: Recipe, corpus: Corpus, device: torch.device, folder: Path, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tokens/s that one core reads; seconds that a checkpoint keeps training waiting, and that it takes in all."""
    config = recipe.train
    step = iter(range(10**9))

    def read() -> torch.Tensor:
        rows = corpus.train.batch(next(step), seed=0, batch_size=config.batch_size, seq_len=config.seq_len)
        batch = torch.from_numpy(rows)
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch

    seconds = in_turn({"read": partial(seconds_per_call, read, device)}, rounds=rounds, least_s=0.5)["read"]
    data = rate(seconds, config.tokens_per_step)
    say(f"data: {data['tokens_per_s']:,.0f} tokens/s")
    model = build_model(recipe.model, seed=0, device=device)
    optimizer = OPTIMIZER[config.optimizer.type](config.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    waits, totals, restores = [], [], []
    run = RunFolder(folder, "checkpoint")
    run.create(recipe, 0)
    run.begin(Stratum(), {}, "")
    for i in range(rounds):
        with Checkpoints(run, 0, say) as checkpoints:
            began = time.perf_counter()
            checkpoints.save(model, optimizer, {"step": i + 1, "losses": [], "val_loss": None})
            waits.append(time.perf_counter() - began)
            checkpoints.wait()
            totals.append(time.perf_counter() - began)
            began = time.perf_counter()
            newest = checkpoints.newest()
            assert newest is not None
            newest.restore(model, optimizer)
            restores.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in run.checkpoints.glob("*/*") if file.is_file()) / len(
        list(run.checkpoints.iterdir())
    )
    said = {
        name: sorted(values)[len(values) // 2]
        for name, values in (("waits", waits), ("whole", totals), ("restore", restores))
    }
    say(
        f"checkpoint: {size / 2**20:,.0f} MiB, training waits {said['waits']:.3f} s for it, written in "
        f"{said['whole']:.2f} s, restored in {said['restore']:.2f} s"
    )
    return {"data": data, "checkpoint": {"bytes": size, "waits_s": waits, "whole_s": totals, "restore_s": restores}}


def side_by_side(
    recipe: Recipe, cache: Path, folder: Path, cores: int, num_steps: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs per hour: one to a core, against one after another with all cores; whole runs, processes' start included."""
    schedule = recipe.train.schedule.model_copy(update={"warmup_steps": num_steps // 10})
    short = replace(recipe, train=recipe.train.model_copy(update={"num_steps": num_steps, "schedule": schedule}))
    layouts = {"one to a core": (cores, 1), "one after another": (1, cores)}
    rates: dict[str, list[float]] = {name: [] for name in layouts}
    for i in range(rounds):
        order = list(layouts) if i % 2 == 0 else list(layouts)[::-1]
        for name in order:
            workers, threads = layouts[name]
            root = folder / f"{name.replace(' ', '-')}-{i}"
            keys = []
            for seed in range(2 * cores):
                run = RunFolder(root, run_key(short.identity(), seed))
                run.create(short, seed)
                keys.append(run.key)
            began = time.perf_counter()
            launcher = LocalLauncher(root, cache, ("cpu",) * workers, threads, RunOptions())
            done = sum(finished is not None for finished in launcher.run(keys))
            spent = time.perf_counter() - began
            failed = [status.reason for key in keys if (status := RunFolder(root, key).status).state != "FINISHED"]
            if failed or done != len(keys):
                raise RuntimeError(f"{len(failed)} runs did not finish: {failed[0]}")
            rates[name].append(3600 * len(keys) / spent)
            say(f"{name}: {rates[name][-1]:.1f} runs per hour")
    spent_on_a_run = {name: [3600 / value for value in values] for name, values in rates.items()}
    gain = ratio(*(spent_on_a_run[name] for name in layouts))
    say("one to a core: {ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}] times the runs per hour".format(**gain))
    return {"runs_per_hour": rates, **gain}
