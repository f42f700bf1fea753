"""How many runs go at once on this machine, and on what."""

from __future__ import annotations

import os
from dataclasses import dataclass

MODEL_EFFICIENCY = 0.5  # of the probe's matrix-product rate that a training step reaches; coarse, and said to be
SMALL_PARAMS = 5_000_000  # below this one thread a run and several runs at once use a processor better


@dataclass(frozen=True)
class Slots:
    """How many runs go at once, and on what."""

    devices: tuple[str, ...]  # one for each worker
    threads: int  # of each worker

    @classmethod
    def choose(cls, device: str, jobs: int | None, num_params: int) -> Slots:
        """One run to a card; on a processor one to a core for small models, one with all cores for large.

        Raises ValueError for a device that is not there.
        """
        import torch

        from runners.runs.machine import resolve_device

        resolved = resolve_device(device)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if resolved.type == "cuda":
            cards = [device] if ":" in device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
            jobs = jobs or len(cards)
            return cls(tuple(cards[i % len(cards)] for i in range(jobs)), max(1, cores // jobs))
        small = num_params < SMALL_PARAMS
        jobs = jobs or (cores if small and resolved.type == "cpu" else 1)
        return cls((resolved.type,) * jobs, 1 if small else max(1, cores // jobs))


def training_flops_per_s(slots: Slots) -> float:
    """FLOP/s that one of the slots may train with, from a matrix product timed now: within a factor of two or so."""
    import torch

    from runners.runs.machine import matmul_flops

    before = torch.get_num_threads()
    torch.set_num_threads(slots.threads)
    try:
        return matmul_flops(torch.device(slots.devices[0]), times=3) * MODEL_EFFICIENCY  # a rough guide, at once
    finally:
        torch.set_num_threads(before)
