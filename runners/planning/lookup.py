"""Where the files lie that experiments name, and how a file with problems is refused."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Literal

from llama_variants.errors import ConfigError, Problem, one_of
from runners.planning.strict_yaml import Document

PROJECT = FilePath(__file__).parents[2]


def find_file(kind: Literal["base", "data"], name: str, beside: FilePath | None = None) -> FilePath:
    """The file of a base, or of data.

    It lies in a folder ``kind``: under ``beside``, in experiments/ of the current folder, or in this project's.
    Raises ConfigError when none of them holds it.
    """
    roots = [*([beside] if beside else []), FilePath("experiments"), PROJECT / "experiments"]
    folders = [root / kind for root in roots]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({found.stem for folder in folders for found in folder.glob("*.yaml")})
    allowed = one_of(name, known) if known else f"a file {name}.yaml in {' or '.join(map(str, folders))}"
    raise ConfigError([Problem(path=(kind,), received=f"unknown {kind} {name!r}", allowed=allowed)])


def refusal(document: Document, problems: list[Problem]) -> ConfigError:
    """All problems of a document as one error, each with its line."""
    located = sorted(dict.fromkeys(map(document.locate, problems)), key=lambda p: int(p.where.rpartition(":")[2]))
    count = f"{len(located)} problem{'s' if len(located) != 1 else ''}"
    return ConfigError(located, title=f"{document.file}: {count}, nothing was run")
