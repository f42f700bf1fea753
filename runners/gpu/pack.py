"""``gpu-pack``: one folder with all that a machine with a card and no network needs."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_variants.errors import ConfigError, Problem
from runners.data import DataError, prepare
from runners.gpu import manifest
from runners.gpu.parts import data_of, steps

LIMIT = 64 * 2**20
"""Bytes that can be carried."""

REQUIREMENTS = ("pydantic", "jaxtyping", "rich", "filelock", "pyyaml", "pytest", "hypothesis", "beartype")
"""What training, the bench and the tests for cards import besides torch, transformers and what these bring along.

MLflow, pandas, scipy and matplotlib, some 90 MB a Python version, are needed for verdicts and figures alone, which are
made where the results are entered.
"""
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "any")
# A token has two bytes: tells the compressor what lines up with what.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 * 2**20, "lp": 1, "lc": 3, "pb": 1}]


def pack(
    folder: Path, base: str | None, pythons: Sequence[str], cache: Path, say: Callable[[str], None]
) -> dict[str, int]:
    """Build ``folder``, whole or not at all; bytes of each part of it.

    Args:
        folder: an earlier pack there is replaced.
        base: as of ``gpu``; its tokens are carried.
        pythons: versions of Python to carry wheels for, such as "3.12".
        cache: of wheels and shards.
        say: receives lines of text.

    Raises:
        ConfigError: for a tree with changes that no commit holds, for another thing in the folder's place, and for more
            than :data:`LIMIT`.
        DataError: when text or wheels cannot be had.
    """
    if folder.exists() and not (folder / "pack.json").exists() and not (folder.is_dir() and not any(folder.iterdir())):
        received = f"{folder}, where something else is"
        raise ConfigError([Problem(path=("--out",), received=received, allowed="a new folder, or an earlier pack")])
    commit = _commit()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _source(partial)
        sizes = {"source": manifest.size(partial)}
        _wheels(partial / "wheels", pythons, say)
        sizes["wheels"] = manifest.size(partial / "wheels")
        (partial / "carried").mkdir()
        for config in data_of(steps(base, "cpu")):
            corpus = prepare(config, cache, say)
            say(f"compressing {corpus.folder.name}")
            _compress(corpus.folder, partial / "carried" / f"{corpus.folder.name}.tar.xz")
        sizes["tokens"] = manifest.size(partial / "carried")
        manifest.write(partial, "pack.json", {"commit": commit, "base": base, "pythons": [*pythons], "bytes": sizes})
        if (total := manifest.size(partial)) > LIMIT:
            told = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
            received = f"a pack of {total / 2**20:.1f} MiB: {told}"
            allowed = f"at most {LIMIT / 2**20:.0f} MiB: fewer versions of Python, or a base on less text"
            raise ConfigError([Problem(path=(), received=received, allowed=allowed)])
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sizes


def unpack(carried: Path, cache: Path) -> None:
    """Put the carried corpora where :func:`runners.data.prepare` looks for them; what is there stays."""
    for archive in sorted(carried.glob("*.tar.xz")):
        target = cache / "corpora" / archive.name.removesuffix(".tar.xz")
        if not target.exists():
            partial = target.with_suffix(".carried")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with tarfile.open(archive) as opened:
                opened.extractall(partial, filter="data")
            partial.rename(target)


def _commit() -> str:
    """HEAD. Raises ConfigError where the tree is no checkout, or has changes: what is carried is what it names."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no").decode().splitlines()
        commit = _git("rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.CalledProcessError) as error:
        received = f"no git checkout ({error})"
        raise ConfigError([Problem(path=(), received=received, allowed="a clone of the project")]) from None
    if changed:
        received = f"{len(changed)} changed files: {', '.join(line[3:] for line in changed[:3])}"
        raise ConfigError([Problem(path=(), received=received, allowed="a tree whose changes are committed")])
    return commit


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], check=True, capture_output=True).stdout


def _source(folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", "HEAD"))) as archive:
        archive.extractall(folder, filter="data")


def _wheels(folder: Path, pythons: Sequence[str], say: Callable[[str], None]) -> None:
    folder.mkdir()
    (folder / "requirements.txt").write_text("".join(f"{name}\n" for name in REQUIREMENTS))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    for python in pythons:
        say(f"fetching wheels for Python {python}")
        place = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
        place += [word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
        place += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*pip, *place, "-c", "requirements.lock", *REQUIREMENTS], capture_output=True, text=True)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-4:])
            raise DataError(f"could not fetch the wheels for Python {python}:\n{last}")


def _compress(corpus: Path, target: Path) -> None:
    with lzma.open(target, "wb", filters=FILTERS) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for member in sorted(corpus.iterdir()):
            archive.add(member, member.name)
