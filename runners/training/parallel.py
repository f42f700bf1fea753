"""One run on several devices: DistributedDataParallel under torchrun. The data and its order do not change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(days=7)  # the others wait while the first waits for a run's lock


@dataclass(frozen=True)
class World:
    """The processes that share a run; this one alone by default.

    ``control``: a group for flags between the processors, beside the one for gradients.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes: the log, the checkpoints, the status."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of the global batch; sizes differ by one where they must."""
        return slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model``, its gradients averaged over the processes at the last micro-batch of a step."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def gradients(self, model: nn.Module, last: bool) -> Any:
        """Context of a micro-batch: gradients are exchanged after the ``last`` one only."""
        return nullcontext() if last or self.size == 1 else model.no_sync()  # type: ignore[operator]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def most(self, *numbers: int) -> tuple[int, ...]:
        """Each number's largest over the processes: all get the same answer at the same step."""
        if self.size == 1:
            return numbers
        raised = torch.tensor(numbers)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.control)
        return tuple(raised.tolist())

    def least(self, value: int) -> int:
        """The smallest of the processes' numbers."""
        if self.size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MIN, group=self.control)
        return int(number)


@contextmanager
def world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun started, and this one's device; only this process where it did not.

    Source: https://docs.pytorch.org/docs/stable/elastic/run.html (the environment variables).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        index = int(os.environ["LOCAL_RANK"]) if size > 1 else device.index or 0
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)  # whose generator is the one that is seeded
    if size == 1:
        yield World(), device
        return
    if device.type == "cuda":  # which names the card: NCCL would guess it from the rank, and connect late
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=PATIENCE)), device
    finally:
        dist.destroy_process_group()
