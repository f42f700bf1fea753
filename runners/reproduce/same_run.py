"""Whether what a log was made of is what this checkout would train: recipe, seed and tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_variants.config import flatten
from llama_variants.errors import ConfigError, Problem
from runners.data.batches import Corpus


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two recipes, as plain data, differ in: ``model.rotary.theta: 10000.0 in the log, 500000.0 here``."""
    sides = [flatten(json.loads(json.dumps(side))) for side in (there, here)]
    told = []
    for path in dict.fromkeys((*sides[0], *sides[1])):
        old, new = (side.get(path) for side in sides)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            old, new = [x for x in old if x not in new] or "nothing", [x for x in new if x not in old] or "nothing"
        told.append(f"{path}: {old} in the log, {new} here")
    return told


def check_comparable(file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ConfigError, with every difference, where a log is of another recipe than this checkout would train."""
    if told := differences(theirs, ours):
        allowed = "the same recipe in the log and in this checkout"
        title = f"{file}: cannot compare, it is another run"
        raise ConfigError([Problem(path=("recipe",), received=text, allowed=allowed) for text in told], title)


def check_same_data(file: Path, theirs: str, corpus: Corpus) -> None:
    """Raises ConfigError where the same declaration has come to mean other tokens."""
    if theirs != corpus.fingerprint:
        problem = Problem(
            path=("data",),
            received=f"fingerprint {theirs} in the log, {corpus.fingerprint} here",
            allowed="the same tokens",
        )
        raise ConfigError([problem], f"{file}: cannot compare, the data is another")
