"""Where a run computes, and what its bits depend on: device, threads, code, random numbers, kernels."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llama_variants
import runners

TRAINING_MODULES = (
    *("train", "evaluate", "optim", "determinism", "recipe", "parallel", "checkpoint", "accumulate"),
    *("compilation", "fastpath"),
)


def resolve_device(name: str) -> torch.device:
    """``auto`` is cuda, mps or cpu, whichever is there first. Raises ValueError, which lists what is there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    there = [kind for kind, is_there in available.items() if is_there]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if available["cuda"] else []
    if name not in there:
        raise ValueError(f"auto, {', '.join(there)}")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 matrix products over float32 weights, or nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def make_deterministic(enabled: bool) -> None:
    """Only kernels that give equal bits on every call, or whichever are fastest; for the whole process.

    Off with it goes cuDNN's attention, whose backward pass has no such form; flash attention's has one. An operation
    that has none raises RuntimeError when it is called. On a CPU every kernel of this model is deterministic anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; its size on Hopper anyway
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs, and shows nothing
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cuda.enable_cudnn_sdp(not enabled)


def price_of_determinism(step: Callable[[], object], device: torch.device, pairs: int = 5) -> float:
    """Time of ``step`` with deterministic kernels over its time without, in turn; the median of ``pairs``.

    Leaves the deterministic ones on.
    """

    def seconds(deterministic: bool) -> float:
        make_deterministic(deterministic)
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for deterministic in (False, True):
        seconds(deterministic)  # warm
    free, fixed = zip(*[(seconds(False), seconds(True)) for _ in range(pairs)], strict=True)
    return statistics.median(fixed) / statistics.median(free)


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Set every global generator that a model on ``device`` may draw from, from (seed, step, rank).

    Random numbers, of a block with dropout, say, are then a function of the step as the data is: they depend on no
    earlier run in this process, and a resume has nothing to restore.
    """
    digest = hashlib.sha256(f"step/{seed}/{step}/{rank}".encode()).digest()
    key = int.from_bytes(digest[:4], "little")  # torch's CPU generator takes 32 bits
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)
    np.random.seed(key)
    random.seed(key)


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}-{platform.machine()}"


def first_line(file: str, beginning: str) -> str:
    """What a file of the system says after ``beginning:``; empty where it says nothing."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(beginning)), "")


def platform_tag(device: torch.device) -> str:
    """What a run's bits depend on besides its recipe, its seed, this code, and how the work was split."""
    parts = [device_name(device).replace(" ", "-")]
    if device.type == "cpu":
        parts.append(_processor())
    return "-".join([*parts, f"torch{torch.__version__.partition('+')[0]}"])


def _processor() -> str:
    """Vendor and instruction set: kernels are chosen by these, and processors with other ones sum in another order."""
    vendor = first_line("/proc/cpuinfo", "vendor_id") or "unknown"
    return f"{vendor}-{torch.backends.cpu.get_cpu_capability().replace(' ', '-')}"


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product, the fastest of eight: what no training step here can pass.

    In bfloat16 on a card, in float32 on a processor.
    """
    size = 8192 if device.type == "cuda" else 1024  # large enough that starting it costs nothing beside it
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def stratum(device: torch.device, threads: int) -> str:
    """What shifts a result's bits without being part of its recipe; verdicts compare runs of one stratum only."""
    parts = {
        "device": device_name(device).replace(" ", "-"),
        # An accelerator's results depend on neither of these two.
        "processor": _processor() if device.type == "cpu" else 0,
        "threads": threads if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "code": code_hash(),
    }
    return " ".join(f"{key}={value}" for key, value in parts.items() if value != 0)


@lru_cache
def code_hash() -> str:
    """8 hex digits over the source that training runs through: unlike a commit it ignores edits elsewhere."""
    package = Path(llama_variants.__file__).parent
    here = Path(runners.__file__).parent
    files = {file.relative_to(package.parent).as_posix(): file for file in package.rglob("*.py")}
    for file in (*(here / f"{name}.py" for name in TRAINING_MODULES), *(here / "data").glob("*.py")):
        files[file.relative_to(here.parent).as_posix()] = file
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:8]
