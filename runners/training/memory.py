"""Memory: its peak, and the micro-batch that fits."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
LINUX = platform.system() == "Linux"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; most of torch's parts have no class of their own for it."""
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def even_parts(total: int, most: int) -> int:
    """How many of ``total`` windows, at most ``most``, to take at a time, so that none are left over for a last part.

    Each other number of windows is another shape to compile. Where no divisor of ``total`` comes near, that costs less
    than small parts would: it is ``most`` then.
    """
    most = min(most, total)
    return next((n for n in range(most, most // 2, -1) if total % n == 0), most)


def largest_that_fits(
    count: int, attempt: Callable[[int], T], say: Callable[[str], None], total: int, retry: bool = True
) -> tuple[int, T]:
    """The first of ``count``, about half of it … 1 with which ``attempt`` has enough memory, and what it gave.

    Each smaller one splits ``total`` windows into even parts where it can (:func:`even_parts`).

    Raises what ``attempt(1)`` raises, and at once whatever is not about memory, or anything where not to ``retry``.
    """
    while True:
        try:
            return count, attempt(count)
        except (RuntimeError, MemoryError) as error:
            if count == 1 or not retry or not is_out_of_memory(error):
                raise
        release()  # after the handler: the error's traceback held on to the tensors
        smaller = even_parts(total, -(-count // 2))
        say(f"out of memory with {count} windows at a time; going on with {smaller}")
        count = smaller


def release() -> None:
    """Give memory that no tensor uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed(device: torch.device) -> None:
    """On a processor, have this process keep the memory that it frees for what it allocates next.

    By itself glibc gives large blocks back to the system at once, and every step then faults its gradients and logits
    in again, page by page. Where there is another C library this does nothing.
    """
    if device.type == "cpu" and LINUX:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own
            libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and never give back


def reset_peak(device: torch.device) -> None:
    """Forget the peak of earlier runs in this process, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX:
        with contextlib.suppress(OSError):  # some kernels and sandboxes have no such file
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def peak_bytes(device: torch.device) -> int:
    """Peak of allocated device memory; on a CPU, of the process's resident memory.

    On a card that is what tensors took, whatever PYTORCH_ALLOC_CONF has the allocator reserve (expandable_segments);
    contexts, NCCL's buffers and other processes come on top.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if LINUX:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("VmHWM"):
                return int(row.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if platform.system() == "Darwin" else peak * 1024
