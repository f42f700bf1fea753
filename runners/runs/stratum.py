"""What shifts a result's bits without being part of its recipe."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch

import llama_variants
import runners
from runners.runs.machine import device_name, processor


def stratum(device: torch.device, threads: int) -> str:
    """What shifts a result's bits without being part of its recipe; verdicts compare runs of one stratum only."""
    parts = {
        "device": device_name(device).replace(" ", "-"),
        # An accelerator's results depend on neither of these two.
        "processor": processor() if device.type == "cpu" else 0,
        "threads": threads if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "code": code_hash(),
    }
    return " ".join(f"{key}={value}" for key, value in parts.items() if value != 0)


@lru_cache
def code_hash() -> str:
    """8 hex digits over the source that training runs through: unlike a commit it ignores edits elsewhere."""
    package = Path(llama_variants.__file__).parent
    here = Path(runners.__file__).parent
    files = {file.relative_to(package.parent).as_posix(): file for file in package.rglob("*.py")}
    own = here / "planning/recipe.py", here / "runs/checkpoint.py"
    for file in (*own, *(here / "training").glob("*.py"), *(here / "data").glob("*.py")):
        files[file.relative_to(here.parent).as_posix()] = file
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:8]
