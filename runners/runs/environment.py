"""What a run was made with: versions, hardware, settings, and the source down to changes that were not committed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import torch

import runners
from runners.runs.machine import device_name, first_line

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "mlflow")
SETTINGS = (
    "OMP_",
    "MKL_",
    "CUDA_",
    "CUBLAS_",
    "NCCL_",
    "PYTORCH_",
    "TORCH_",
)  # beginnings of variables that may matter
SOURCE = (".py", ".yaml", ".yml", ".toml")  # of new files; there may be anything among them
PLAIN = ("--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/", "--binary")  # whatever the user set
HERE = Path(runners.__file__).parent
MAX_DIFF = 1_000_000


def environment(device: torch.device, world_size: int = 1) -> dict[str, str]:
    """Versions, hardware, settings and source state, kept with every run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": str(os.getpid()),
        "command": " ".join(sys.argv)[:1000],
        "device": device_name(device),
        "processor": f"{first_line('/proc/cpuinfo', 'model name')} {torch.backends.cpu.get_cpu_capability()}".strip(),
        "cores": str(os.cpu_count()),
        "memory_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "world_size": str(world_size),
        **{name: _version(name) for name in PACKAGES},
        "torch": torch.__version__,  # its package's version may lack the build: 2.11.0 instead of 2.11.0+cu130
        **_accelerator(device),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
        **_git_state(),
    }


def _version(package: str) -> str:
    """``absent`` where it is not installed: a machine that trains needs no tracking store, say."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _accelerator(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {}
    return {
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": first_line("/proc/driver/nvidia/version", "NVRM version"),
        "device_memory_bytes": str(torch.cuda.get_device_properties(device).total_memory),
    }


@lru_cache
def _git_state() -> dict[str, str]:
    """Commit and whether the tree differed from it; empty outside a checkout."""
    try:
        return {"commit": _git("rev-parse", "HEAD").strip(), "dirty": str(bool(_git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


@lru_cache
def uncommitted() -> str:
    """The tree's difference from its commit as a patch, new source files included; empty where there is none.

    Cut off at a million characters, and then says so.
    """
    try:
        top = Path(_git("rev-parse", "--show-toplevel").strip())
        parts = [_git("diff", *PLAIN, "HEAD", folder=top)]
        for name in _git("ls-files", "--others", "--exclude-standard", "-z", folder=top).split("\0"):
            if name.endswith(SOURCE):
                parts.append(_git("diff", *PLAIN, "--no-index", "--", "/dev/null", name, folder=top))
    except (OSError, subprocess.CalledProcessError):
        return ""
    text = "".join(parts)
    return text if len(text) <= MAX_DIFF else f"{text[:MAX_DIFF]}\n[cut off here: {len(text):,} characters]\n"


def _git(*arguments: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        ["git", "-c", "core.quotePath=false", *arguments],
        cwd=folder or HERE,
        capture_output=True,
    )
    if done.returncode not in ((0, 1) if "--no-index" in arguments else (0,)):  # 1: they differ
        raise subprocess.CalledProcessError(done.returncode, done.args)
    return done.stdout.decode(errors="surrogateescape")
