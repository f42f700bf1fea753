"""A folder that is carried from one machine to another, and a file in it with the sha256 of all others.

The standard library alone: it is read where nothing is installed yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, head: Mapping[str, Any]) -> None:
    """Write ``folder``/``name``: ``head``, and the digest of every file that is there."""
    digests = {str(file.relative_to(folder)): _sha256(file) for file in _files(folder) if file != folder / name}
    partial = folder / f".{name}"
    partial.write_text(json.dumps({**head, "files": digests}, indent=1) + "\n")
    partial.replace(folder / name)


def read(folder: Path, name: str) -> dict[str, Any]:
    """What :func:`write` wrote. Raises ValueError for a folder without it, and for another file of that name."""
    try:
        record = json.loads((folder / name).read_text())
        if not isinstance(record["files"], dict):
            raise TypeError("no digests")
        if outside := [file for file in record["files"] if Path(file).is_absolute() or ".." in Path(file).parts]:
            raise ValueError(f"{outside[0]} is no file in this folder")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no {folder / name}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / name}: {type(error).__name__}: {error}") from None
    return dict(record)


def damaged(folder: Path, name: str) -> dict[str, str]:
    """Files that are missing or not what was written, and which of both. Raises ValueError as :func:`read` does."""
    found = {}
    for relative, digest in read(folder, name)["files"].items():
        file = folder / relative
        if not file.is_file():
            found[relative] = "is missing"
        elif _sha256(file) != digest:
            found[relative] = "is not what was written"
    return found


def faults(folder: Path, name: str) -> list[str]:
    """:func:`damaged` in words."""
    return [f"{relative} {what}" for relative, what in damaged(folder, name).items()]


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
