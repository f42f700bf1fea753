"""This project beside its peers: tokens/s, share of the card's peak, memory, start-up, and where the time goes."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from runners.bench.contenders import CONTENDERS, REFERENCE, Contender, Step, first_loss_is_fair
from runners.bench.measure import bandwidth, in_turn, peak_flops, rate, ratio, seconds_per_call
from runners.bench.roofline import roofline
from runners.planning.recipe import Recipe
from runners.runs.machine import device_name, matmul_flops
from runners.training import memory
from runners.training.autotune import AT_ONCE
from runners.training.compile import keep_compiled_in

KERNELS = {
    "attention": r"flash|fmha|attention|sdpa",
    "optimizer": r"adam|multi_tensor|foreach|lpnorm|clip",
    "loss": r"nll|softmax|cross_entropy",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|aten::(mm|bmm|addmm|linear|matmul)$",
}
"""Classes by the first pattern that a kernel's name (on a processor, an operator's) contains; the rest is pointwise."""


def peers(
    recipe: Recipe,
    device: torch.device,
    names: Sequence[str],
    rounds: int,
    least_s: float,
    scratch: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the contenders called ``names`` in turn, each in a process of its own and at its best micro-batch.

    Each begins with nothing compiled: it compiles into a folder of its own in ``scratch``.

    Returns:
        ``rows``, one for each contender, and ``kernels``, the share of time by class for ours.
    """
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        guests: dict[str, _Guest] = {}
        for contender in (c for c in CONTENDERS if c.name in names):
            if contender.missing:
                say(f"{contender.name}: left out; the package {contender.needs} is not installed")
                continue
            guest = guests[contender.name] = stack.enter_context(_Guest(contender.name, recipe, device, scratch))
            row = rows[contender.name] = guest.ask("settle")
            say(f"{contender.name}: {row['startup_s']:.1f} s to the first step, {row['micro_batch']} windows at a time")
        measures = {name: partial(guest.ask, "measure") for name, guest in guests.items()}
        seconds = in_turn(measures, rounds=rounds, least_s=least_s)
        flops = matmul_flops(device)
        kernels = {name: guests[name].ask("kernels") for name in guests if name.startswith("ours")}
    config = recipe.train
    peak, bytes_per_s = peak_flops(device), bandwidth(device_name(device))
    least = None  # a step's roofline, where the card's data sheet is known
    if peak and bytes_per_s and config.precision == "bfloat16":
        least = roofline(recipe.model, config, flops=peak, bandwidth=bytes_per_s)
    palm, causal = (recipe.model.flops_per_token(config.seq_len, causal=causal) for causal in (False, True))
    for name, row in rows.items():
        row |= rate(seconds[name], config.tokens_per_step) | {"seconds": seconds[name]}
        row |= ratio(seconds[name], seconds[REFERENCE]) if REFERENCE in seconds else {}
        row |= {"of_ceiling": row["tokens_per_s"] * causal / flops}
        if peak:
            row |= {"mfu_palm": row["tokens_per_s"] * palm / peak, "mfu_causal": row["tokens_per_s"] * causal / peak}
        if least:
            row |= {"of_roofline": row["tokens_per_s"] * least.total / 1000 / config.tokens_per_step}
    ceiling = flops / causal
    say(f"ceiling: {ceiling:,.0f} tokens/s, were all of a step large matrix products ({flops / 1e12:.3g} TFLOP/s here)")
    found = {"rows": list(rows.values()), "kernels": kernels, "matmul_flops": flops, "ceiling_tokens_per_s": ceiling}
    if least:
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in least.to_dict().items())
        fastest = config.tokens_per_step / least.total * 1000
        say(f"roofline: {fastest:,.0f} tokens/s by the card's data sheet; milliseconds of a step: {parts}")
        found["roofline_ms"] = least.to_dict()
    return found


class _Guest:
    """A contender in a process of its own: what it does to the process, or leaves in memory, is nobody else's."""

    def __init__(self, name: str, recipe: Recipe, device: torch.device, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, name, recipe, device, torch.get_num_threads(), scratch)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *error: object) -> None:
        self.pipe.close()
        self.process.terminate()  # it may be in the middle of a step
        self.process.join()

    def ask(self, what: str, *arguments: object) -> Any:
        """What the contender answers; raises RuntimeError with what it died of."""
        self.pipe.send((what, arguments))
        try:
            answer, failure = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the process of a contender died (exit code {self.process.exitcode})") from None
        if failure:
            raise RuntimeError(failure)
        return answer


def _serve(pipe: Connection, name: str, recipe: Recipe, device: torch.device, threads: int, scratch: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal: the parent decides
    keep_compiled_in(scratch / name)
    torch.set_num_threads(threads)
    host = _Host(next(c for c in CONTENDERS if c.name == name), recipe, device)
    with contextlib.suppress(EOFError):
        while True:
            what, arguments = pipe.recv()
            try:
                pipe.send((getattr(host, what)(*arguments), ""))
            except Exception as error:
                pipe.send((None, f"{name}: {type(error).__name__}: {error}"))


class _Host:
    """A contender at work, in its own process."""

    def __init__(self, contender: Contender, recipe: Recipe, device: torch.device) -> None:
        self.contender, self.recipe, self.device = contender, recipe, device
        shape = recipe.train.batch_size, recipe.train.seq_len
        generator = torch.Generator().manual_seed(0)
        self.batch = torch.randint(recipe.model.vocab_size, shape, generator=generator).to(device)
        self.step: Step | None = None

    def settle(self) -> dict[str, Any]:
        """Take the fastest of a few micro-batches; start-up is that of the first one tried."""
        tried: dict[int, dict[str, Any]] = {}
        for micro_batch in self._micro_batches():
            try:
                tried[micro_batch] = self._start(micro_batch)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
        if not tried:
            raise RuntimeError("not even one window fits into memory")
        best = min(tried, key=lambda micro_batch: tried[micro_batch]["step_s"])
        if best != list(tried)[-1]:
            self._start(best)
        started = next(iter(tried.values()))["startup_s"]
        return {"name": self.contender.name, "micro_batch": best, **tried[best], "startup_s": started}

    def _start(self, micro_batch: int) -> dict[str, Any]:
        self.step = None
        gc.collect()
        memory.release()
        memory.reset_peak(self.device)
        began = time.perf_counter()
        model, self.step = self.contender.make(self.recipe, self.device, micro_batch)
        loss = float(self.step(self.batch))
        startup_s = time.perf_counter() - began
        params = sum(p.numel() for p in model.parameters())
        if params != self.recipe.model.num_params or not first_loss_is_fair(loss, self.recipe.model.vocab_size):
            raise RuntimeError(f"{params:,} parameters and a first loss of {loss:.3f}: it is not the model asked for")
        return {
            "startup_s": startup_s,
            "first_loss": loss,
            "num_params": params,
            "step_s": self.measure(2),
            "peak_memory_bytes": memory.peak_bytes(self.device),
        }

    def _micro_batches(self) -> list[int]:
        """The most that makes sense at a time, and the next smaller divisor of the batch."""
        count, time = self.batch.shape
        most = max(1, AT_ONCE["cpu" if self.device.type == "cpu" else "accelerator"] // time)
        return [n for n in range(count, 0, -1) if count % n == 0 and n <= most][:2]

    def measure(self, calls: int) -> float:
        """Mean seconds of a step; one more goes before, and no memory is kept from the others on the card after."""
        assert self.step is not None
        call = partial(self.step, self.batch)
        call()
        seconds = seconds_per_call(call, self.device, calls)
        memory.release()
        return seconds

    def kernels(self) -> dict[str, float]:
        """Where a step's time goes."""
        assert self.step is not None
        return kernel_shares(partial(self.step, self.batch), self.device)


def kernel_shares(call: Callable[[], object], device: torch.device, calls: int = 3) -> dict[str, float]:
    """Share of the time of a call by class of kernel; ``idle`` is when the device had nothing to do."""
    activity = torch.profiler.ProfilerActivity
    on_card = device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CUDA, activity.CPU] if on_card else [activity.CPU]) as profile:
        seconds = seconds_per_call(call, device, calls)
    busy = dict.fromkeys([*KERNELS, "pointwise"], 0.0)
    for event in profile.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device != on_card:
            continue
        spent = event.self_device_time_total if on_card else event.self_cpu_time_total
        busy[kernel_class(event.key)] += spent / 1e6 / calls
    total = max(seconds, sum(busy.values()))
    return {name: spent / total for name, spent in busy.items()} | {"idle": 1 - sum(busy.values()) / total}


def kernel_class(name: str) -> str:
    """The class that a kernel's name tells."""
    return next((kind for kind, words in KERNELS.items() if re.search(words, name, re.IGNORECASE)), "pointwise")
