"""What declarations of sources and of tokenizers share: pins, places, and digests of files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict

from llama_variants.errors import ConfigError, Problem, matching
from llama_variants.errors import Path as FieldPath

Pin = Annotated[
    str,
    matching(
        r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+ sha256:[0-9a-f]{64}",
        "a wheel as 'name==version sha256:' and 64 hex digits, which `pip hash` prints",
    ),
]
"""One wheel: ``name==version sha256:digest``."""
Pins = Annotated[tuple[Pin, ...], Strict(False), Field(min_length=1)]


def pin_name(pin: str) -> str:
    """The package's name in its normal form (lower case, hyphens)."""
    return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower()


def file_sha256(file: Path) -> str:
    """Hex digest of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def local(name: str) -> Path:
    """A path as a file writes it: with ``~`` for the home folder, and left alone where there is no such user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111


def contents(files: Iterable[Path]) -> list[list[str]]:
    """Name and digest of each file, without its folder."""
    return [[file.name, _digest_at(file.resolve(), *version(file))] for file in files]


def version(file: Path) -> tuple[int, int]:
    """What changes when a file's content does; what is computed of the content is kept under it."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)  # a plan asks once for each of its arms
def _digest_at(file: Path, mtime_ns: int, size: int) -> str:
    return file_sha256(file)


def check_commit(revision: str, path: FieldPath) -> None:
    """Raises ConfigError for a revision that can move, as a branch or a tag does."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        allowed = "the 40 hex digits of a commit: a branch or a tag moves"
        raise ConfigError([Problem(path=path, received=repr(revision), allowed=allowed)])
