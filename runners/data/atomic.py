"""Writing so that a reader, or a power cut, sees the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomically(target: Path, content: str | bytes) -> None:
    """A reader sees the old file or the new one, never a part, after a power cut too."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    flush(temporary)
    temporary.replace(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_folder(partial: Path, target: Path) -> Iterator[Path]:
    """Fill ``partial`` in the body; then ``target`` has its content, on the disk, whole, or nothing has changed."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        mode = partial.stat().st_mode & 0o666  # what the umask leaves; safetensors keeps files to their owner
        for file in partial.iterdir():
            file.chmod(mode)
            flush(file)
        flush(partial)
        if target.exists():  # of the same step, before a resume: the same content, or an unreadable one
            shutil.rmtree(target)
        partial.rename(target)
        flush(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
