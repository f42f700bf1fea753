"""Run folders: the one place where a run's truth is kept.

``runs/<key>/`` holds config.yaml (the recipe and the seed), metrics.jsonl (one line per logged step), status.json and,
after a failure, error.txt. Everything else (the tracking store, reports) can be made again from these.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from runners.recipe import Recipe

State = Literal["NEW", "RUNNING", "FINISHED", "FAILED", "INVALID", "KILLED"]


@dataclass(frozen=True)
class Status:
    """What is known of a run. Times are seconds since the epoch."""

    state: State = "NEW"
    attempt: str = ""  # a new one for every start from scratch
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0
    stratum: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""


class RunFolder:
    """One run's folder. Reading never needs the lock; only the process that trains writes."""

    def __init__(self, root: Path, key: str) -> None:
        self.path = root / key
        self.key = key

    def create(self, recipe: Recipe, seed: int) -> None:
        """Write config.yaml unless it is there; the key names its content, so it never changes."""
        target = self.path / "config.yaml"
        if not target.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump({"seed": seed, **recipe.to_dict()}, sort_keys=False)
            write_atomically(target, text)

    def config(self) -> tuple[Recipe, int]:
        """The recipe and the seed."""
        data = yaml.safe_load((self.path / "config.yaml").read_text())
        return Recipe.from_dict(data), data["seed"]

    def lock(self) -> FileLock:
        """Held while a process trains this run."""
        return FileLock(self.path / "lock")

    @property
    def error_file(self) -> Path:
        """Where a failed attempt leaves its traceback."""
        return self.path / "error.txt"

    @property
    def status(self) -> Status:
        """What is known of the run; NEW when nothing is."""
        try:
            return Status(**json.loads((self.path / "status.json").read_text()))
        except FileNotFoundError:
            return Status()

    def begin(self, stratum: str, environment: Mapping[str, str], data_fingerprint: str) -> None:
        """Start an attempt: clear what an earlier one logged."""
        (self.path / "metrics.jsonl").write_text("")
        self.error_file.unlink(missing_ok=True)
        self._write(Status("RUNNING", uuid.uuid4().hex, "", time.time(), 0.0, stratum, environment, data_fingerprint))

    def end(self, state: State, reason: str = "", error: str = "") -> None:
        """Close the attempt."""
        if error:
            self.error_file.write_text(error)
        status = self.status
        if not status.attempt:  # it failed before it could begin
            status = replace(status, attempt=uuid.uuid4().hex, started=time.time())
        self._write(replace(status, state=state, reason=reason, ended=time.time()))

    def forget(self) -> None:
        """Have the run carried out again; what it logged stays until then."""
        self._write(Status())

    def _write(self, status: Status) -> None:
        write_atomically(self.path / "status.json", json.dumps(asdict(status), indent=1))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; floats keep every digit."""
        row = {"time": round(time.time(), 3), "step": step, "metrics": metrics}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Complete lines from byte ``start`` on, and the byte after them; a line still being written is left."""
        try:
            with (self.path / "metrics.jsonl").open("rb") as file:
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return [], start
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def write_atomically(target: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(target)


def run_folders(root: Path) -> Iterator[RunFolder]:
    """Every run folder under ``root``."""
    for path in sorted(root.glob("*/config.yaml")):
        yield RunFolder(root, path.parent.name)
