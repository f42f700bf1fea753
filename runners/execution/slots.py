"""How many runs go at once on this machine, and on what."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
