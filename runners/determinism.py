"""Where and with what a run computes: the device, its threads, and a record of both."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import llama_variants
import runners

TRAINING_MODULES = ("train", "evaluate", "optim", "determinism", "recipe")


def resolve_device(name: str) -> torch.device:
    """``auto`` is cuda, mps or cpu, whichever is there first. Raises ValueError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    there = [kind for kind, is_there in available.items() if is_there]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if available["cuda"] else []
    if name not in there:
        raise ValueError(f"a device that is not there; allowed: auto, {', '.join(there)}")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 matrix products over float32 weights, or nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}-{platform.machine()}"


def stratum(device: torch.device, threads: int) -> str:
    """What shifts a result's bits without being part of its recipe; verdicts compare runs of one stratum only."""
    parts = {
        "device": device_name(device).replace(" ", "-"),
        "threads": threads if device.type == "cpu" else 0,  # an accelerator's results do not depend on them
        "torch": torch.__version__,
        "compile": "off",
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


def environment(device: torch.device) -> dict[str, str]:
    """Versions, hardware and source state, kept with every run."""
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "mlflow")
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "cores": str(os.cpu_count()),
        **versions,
        **_git_state(),
    }


@lru_cache
def _git_state() -> dict[str, str]:
    """Commit and whether the tree differed from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(runners.__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
