"""Where a run computes, and what its bits depend on: device, threads, code, random numbers, kernels."""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch._inductor.config

from llama_variants import LlamaForCausalLM
from runners.planning.recipe import TrainConfig


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 matrix products over float32 weights, or nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def set_as_trained(model: LlamaForCausalLM, config: TrainConfig, end_id: int) -> None:
    """Have ``model`` compute as the recipe trains it: the type of its residual stream, and what a document sees.

    ``end_id`` is the token that ends a document. Weights stay in float32.
    """
    model.model.residual_stream = None if config.residual_stream == "float32" else torch.bfloat16
    model.model.document_end = end_id if config.mask_documents else None


def make_deterministic(enabled: bool) -> None:
    """Only kernels that give equal bits on every call, or whichever are fastest; for the whole process.

    Off with it goes cuDNN's attention, whose backward pass has no such form; flash attention's has one. An operation
    that has none raises RuntimeError when it is called. On a CPU every kernel of this model is deterministic anyway.

    Compiled code is deterministic only if nothing in it was chosen by a stopwatch: with two cold caches, two machines
    of one kind may else take other configurations of a kernel, and give other bits.
    """
    # Read at the process's first matrix product, so it is set for every run: a later one may be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # on Hopper it has this size anyway
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs, and shows nothing
    torch._inductor.config.deterministic = enabled
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cuda.enable_cudnn_sdp(not enabled)


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
