"""The device that a run computes on, by name and by what its bits depend on."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch


def resolve_device(name: str) -> torch.device:
    """``auto`` is cuda, mps or cpu, whichever is there first; ``cuda`` is the first card, by its number.

    Raises ValueError, which lists what is there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [kind for kind, is_there in available.items() if is_there]
    if name == "auto":
        name = there[0]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if available["cuda"] else []
    if name not in there:
        raise ValueError(f"auto, {', '.join(there)}")
    return torch.device("cuda:0" if name == "cuda" else name)  # set_device and NCCL take no card without a number


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
        parts.append(processor())
    return "-".join([*parts, f"torch{torch.__version__.partition('+')[0]}"])


def processor() -> str:
    """Vendor and instruction set: kernels are chosen by these, and processors with other ones sum in another order."""
    vendor = first_line("/proc/cpuinfo", "vendor_id") or "unknown"
    return f"{vendor}-{torch.backends.cpu.get_cpu_capability().replace(' ', '-')}"


def matmul_flops(device: torch.device, times: int = 8) -> float:
    """FLOP/s of a large matrix product, the fastest of ``times``: what no training step here can pass.

    In bfloat16 on a card, in float32 on a processor.
    """
    size = 8192 if device.type == "cuda" else 1024  # large enough that starting it costs nothing beside it
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / min(taken)
