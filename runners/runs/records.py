"""Reading the JSON files of a run folder: a damaged one is named, with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama_variants.errors import ConfigError, Problem


def damaged(file: Path, what: str, remedy: str, line: int | None = None) -> ConfigError:
    """What to raise for a file that is not as it was written; ``line`` from 1."""
    place = str(file) if line is None else f"{file}:{line}"
    problem = Problem(path=(place,), received=what, allowed=remedy)
    return ConfigError([problem], title=f"{place} is damaged")


def parse_record(text: bytes, file: Path, remedy: str, line: int | None = None) -> dict[str, Any]:
    """One JSON object out of ``file``. Raises ConfigError for anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"{error}" if text.strip(b"\0 \n") else "nothing: the file is empty"
        raise damaged(file, what, remedy, line) from None
    if not isinstance(record, dict):
        raise damaged(file, f"{record!r:.60}", remedy, line)
    return record


def read_record(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises FileNotFoundError, and ConfigError for a file that holds none."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(file, str(error.strerror), remedy) from None
    return parse_record(text, file, remedy)
