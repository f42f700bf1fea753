"""Compiled training: every decoder layer and the loss by torch.compile, with fixed shapes.

By layer and not the whole model: all layers of one kind share what was compiled once, so that a cold start takes a
fraction of the time, and names in the state dict stay what they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch._inductor.runtime.runtime_utils import default_cache_dir
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_variants import LlamaForCausalLM
from llama_variants.model import next_token_loss

MODES = ("auto", "on", "off")
CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"
KINDS = 64  # of layers and shapes that one process may meet: a warm worker trains one variant after another


def wants_compile(mode: str, device: torch.device) -> bool:
    """Whether to compile: ``on``, ``off``, or ``auto``, which does on a GPU.

    On a CPU the matrix products take nearly all of the time, and compiling takes longer than a small run.
    """
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def keep_compiled_in(folder: Path) -> None:
    """Have later processes find what was compiled, unless the environment names another place.

    torch's own default, a folder of the system's temporary ones, is no such name: importing transformers enters it
    into the environment, as if a user had, and children inherit it.
    """
    if os.environ.get(CACHE_DIR, default_cache_dir()) == default_cache_dir():
        os.environ[CACHE_DIR] = str(folder.resolve())


def compile_model(model: LlamaForCausalLM) -> None:
    """Have the model's layers and loss compiled when they are first called with a shape; parameters stay.

    The backward pass with the forward one, in this thread: by itself torch compiles it when it first runs, on a card in
    a thread of autograd's, which does not see what this one has set in torch's configuration (``deterministic``).
    """
    torch._dynamo.config.recompile_limit = KINDS
    torch._functorch.config.force_non_lazy_backward_lowering = True
    for layer in model.model.layers:
        layer.compile(fullgraph=True, dynamic=False)
    model.loss_function = compiled(next_token_loss)


def uncompile_model(model: LlamaForCausalLM) -> None:
    """Undo :func:`compile_model`."""
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    model.loss_function = next_token_loss


def is_compiled(model: LlamaForCausalLM) -> bool:
    """Whether :func:`compile_model` holds."""
    return model.loss_function is not next_token_loss


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, compiled once for the process."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def eager() -> AbstractContextManager[Any]:
    """Inside, what was compiled runs as it is written: for probes of other shapes, and to look into a module."""
    return torch.compiler.set_stance("force_eager")


_preference = ""
"""What attention preferred when this process last compiled for a card."""


@contextmanager
def attention_kernels(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Inside, attention takes cuDNN's kernel where it can, the fastest on Hopper; it repeats its bits with no other.

    Deterministic training leaves cuDNN's out: its backward pass has no such form.

    The kernel is chosen when a graph is traced, and neither Dynamo's guards nor the caches on disk know what was
    preferred: with one cache, a process would get the kernel of another one's graph. So the preference is in the tag of
    everything compiled inside, and a change of it forgets what this process has compiled.
    """
    global _preference
    if device.type != "cuda":
        yield
        return
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    kernels = kernels[1:] if deterministic else kernels
    preference = "attention=" + ",".join(kernel.name for kernel in kernels)
    if _preference not in ("", preference):
        torch._dynamo.reset()
    _preference = preference
    tagged = torch.compiler.config.patch(cache_key_tag=preference)  # type: ignore[attr-defined]
    with sdpa_kernel(kernels, set_priority=True), tagged:
        yield
