"""Faults that the checks must see, each as a context in which the project has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from llama_variants import LlamaMLP
from runners.training import loop, state

_kept: list[Tensor] = []


def _changed(owner: Any, name: str, change: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Inside, ``change`` is called with the function in ``owner`` and what this was called with."""
    original = getattr(owner, name)
    return patch.object(owner, name, lambda *arguments, **options: change(original, *arguments, **options))


def item() -> AbstractContextManager[Any]:
    """A value is read back in each step."""

    def change(update: Callable[..., Any], *arguments: Any) -> Any:
        found = update(*arguments)
        found[0].item()
        return found

    return _changed(loop, "update", change)


def waits() -> AbstractContextManager[Any]:
    """Each step waits for the card."""

    def change(update: Callable[..., Any], *arguments: Any) -> Any:
        torch.cuda.synchronize()
        return update(*arguments)

    return _changed(loop, "update", change)


def on_cpu() -> AbstractContextManager[Any]:
    """A block makes a tensor on the processor."""
    return _changed(LlamaMLP, "forward", lambda forward, self, x: forward(self, x) + torch.ones(x.shape[-1]))


def index_on_cpu() -> AbstractContextManager[Any]:
    """A block looks something up by a tensor on the processor, which works, and copies it each time."""
    return _changed(LlamaMLP, "forward", lambda forward, self, x: forward(self, x[torch.arange(len(x))]))


def other_shape() -> AbstractContextManager[Any]:
    """From the fourth step on batches are shorter."""

    def change(batch: Callable[..., Tensor], self: Any, step: int) -> Tensor:
        found = batch(self, step)
        return found if step < 3 else found[:, :-1].contiguous()

    return _changed(state.Training, "batch", change)


def launches() -> AbstractContextManager[Any]:
    """Each step launches 300 small kernels more."""

    def change(update: Callable[..., Any], *arguments: Any) -> Any:
        found = update(*arguments)
        for _ in range(300):
            found[0].add_(0)
        return found

    return _changed(loop, "update", change)


def allocates() -> AbstractContextManager[Any]:
    """Each step gives its memory back, and asks for it again."""

    def change(update: Callable[..., Any], *arguments: Any) -> Any:
        found = update(*arguments)
        torch.cuda.empty_cache()
        return found

    return _changed(loop, "update", change)


def grows() -> AbstractContextManager[Any]:
    """Each step leaves 4 GiB behind, which no attempt before the first step foresaw."""

    def change(gradients: Callable[..., Any], *arguments: Any) -> Any:
        _kept.append(torch.empty(2**32, dtype=torch.uint8, device="cuda"))
        return gradients(*arguments)

    @contextmanager
    def inside() -> Iterator[None]:
        with _changed(loop, "gradients", change):
            try:
                yield
            finally:
                _kept.clear()

    return inside()


def surges() -> AbstractContextManager[Any]:
    """Each step needs 1 GiB a window more than the attempts before the first step."""

    def change(gradients: Callable[..., Any], *arguments: Any) -> Any:
        room = torch.empty(arguments[-1] << 30, dtype=torch.uint8, device="cuda")
        try:
            return gradients(*arguments)
        finally:
            del room

    return _changed(loop, "gradients", change)


def unfused_attention() -> AbstractContextManager[Any]:
    """Attention keeps the scores of all pairs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return _changed(loop, "attention_kernels", lambda *ignored: sdpa_kernel(SDPBackend.MATH))


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    **{
        plant.__name__: plant
        for plant in (
            *(item, waits, on_cpu, index_on_cpu, other_shape, launches, allocates, grows, surges, unfused_attention),
        )
    },
}
