"""What rehearsals of `make gpu` have in common: a clone with few steps, and commands in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.runners.conftest import clean_environment
from tests.test_readme import copy_tracked

FEWER = {
    "experiments/base/tiny.yaml": {
        "num_steps: 1200": "num_steps: 20",
        "warmup_steps: 60": "warmup_steps: 4",
        "every_steps: 200": "every_steps: 20",
        "num_windows: 512": "num_windows: 32",
        "blocks: 8": "blocks: 2",
    },
    "experiments/controls.yaml": {"blocks: 8": "blocks: 2"},
    "experiments/learning_rate_8m.yaml": {"blocks: 3": "blocks: 2"},
}


def environment() -> dict[str, str]:
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "ARGS")  # of the make that runs the tests
    return {key: value for key, value in clean_environment().items() if key not in dropped}


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def runners(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runners", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def make_clone(folder: Path) -> Path:
    """The project in ``folder``, with fewer steps, committed; the corpus may be there already."""
    copy_tracked(folder)
    for name, changes in FEWER.items():
        text = (folder / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "fewer steps")
    (ROOT / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(ROOT / "cache")
    (folder / ".git/info/exclude").write_text("/cache\n")
    return folder


def packed(clone: Path, folder: Path) -> Path:
    """What `gpu-pack` of ``clone`` builds at ``BASE=tiny``, in ``folder``."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = runners(clone, "gpu-pack", "--base", "tiny", "--python", version, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder
