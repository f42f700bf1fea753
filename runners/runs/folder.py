"""Run folders: the one place where a run's truth is kept.

``runs/<key>/`` holds config.yaml (the recipe and the seed), metrics.jsonl (one line per logged step), status.json,
events.log (what happened, in words), source.diff (what was not committed), checkpoints/ while it trains, final/ (the
weights) when it is done and, after a failure, error.txt. The tracking store and reports can be made again from these.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from analysis.store.stratum import Stratum
from llama_variants.errors import ConfigError
from runners.data.atomic import write_atomically
from runners.planning.recipe import Recipe
from runners.runs.records import damaged, parse_record, read_record

State = Literal["NEW", "RUNNING", "FINISHED", "FAILED", "INVALID", "KILLED"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a run. Times are seconds since the epoch."""

    state: State = "NEW"
    attempt: str = ""  # names one log that only grows: a start from scratch and a log cut back each make a new one
    reason: str = ""
    started: float = 0.0  # the attempt
    resumed: float = 0.0  # the process that has it, or had it last
    ended: float = 0.0
    stratum: Stratum | None = None  # of the attempt; None before it began
    environment: Mapping[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Status:
        """What :meth:`RunFolder.begin` and :meth:`RunFolder.end` wrote. Raises ValueError for anything else."""
        made = record.get("stratum")  # runs of the first version have a line of text, and are not read again
        return _STATUS.validate_python({**record, "stratum": made if isinstance(made, dict) else None})


_STATUS = TypeAdapter(Status)


class RunFolder:
    """One run's folder. Reading never needs the lock; only the process that trains writes.

    ``echo`` receives every event, ``on_row`` every logged step, besides the files.
    """

    def __init__(self, root: Path, key: str, echo: Callable[[str], None] = lambda text: None) -> None:
        self.path = root / key
        self.key = key
        self.echo = echo
        self.on_row: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
        self._unwritten = b""  # rows that the disk had no room for

    @property
    def _remedy(self) -> str:
        return f"the file as it was; or move {self.path} away, and the run is trained again"

    def create(self, recipe: Recipe, seed: int) -> None:
        """Write config.yaml unless it is there, and sound; the key names its content, so it never changes."""
        try:
            self.config()
        except (FileNotFoundError, ConfigError):
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump({"seed": seed, **recipe.to_dict()}, sort_keys=False)
            write_atomically(self.path / "config.yaml", text)

    def config(self) -> tuple[Recipe, int]:
        """The recipe and the seed. Raises FileNotFoundError, and ConfigError for a damaged file."""
        file = self.path / "config.yaml"
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise TypeError(f"{data!r:.60}")
            return Recipe.from_dict(data), int(data["seed"])
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            what = " ".join(str(error).split())[:200] if file.stat().st_size else "0 bytes"
            raise damaged(file, what, self._remedy) from None

    def lock(self) -> FileLock:
        """Held while a process trains this run."""
        return FileLock(self.path / "lock")

    @property
    def log_file(self) -> Path:
        """One line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are while it trains."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """Its weights when it is done, as transformers loads them, with the tokenizer."""
        return self.path / "final"

    @property
    def evaluations(self) -> Path:
        """What probes measured of these weights."""
        return self.path / "evaluations"

    @property
    def error_file(self) -> Path:
        """Where a failed attempt leaves its traceback."""
        return self.path / "error.txt"

    @property
    def status(self) -> Status:
        """What is known of the run; NEW when nothing is. Raises ConfigError for a damaged file."""
        file = self.path / "status.json"
        try:
            return Status.of(read_record(file, self._remedy))
        except FileNotFoundError:
            return Status()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise damaged(file, what, self._remedy) from None

    def checked_status(self) -> Status:
        """The status; of a finished run only where its log has the last step. Raises ConfigError otherwise."""
        status = self.status
        if status.state == "FINISHED":
            self.final_metrics()
        return status

    def begin(
        self,
        stratum: Stratum,
        environment: Mapping[str, str],
        data_fingerprint: str,
        log_bytes: int = 0,
        diff: str = "",
    ) -> None:
        """Start an attempt, or go on with the last one where its log ends at ``log_bytes`` (0: from scratch).

        What was logged beyond that is cut off: those steps are done again. ``diff`` becomes source.diff.
        """
        size = self.log_file.stat().st_size if self.log_file.exists() else 0
        assert size >= log_bytes
        before, now = self.status, time.time()
        attempt, started = before.attempt, before.started
        if not log_bytes or size > log_bytes:
            attempt, started = uuid.uuid4().hex, now
        # The status first: no reader takes the log that is cut back for one that grew.
        self._write(
            Status(
                state="RUNNING",
                attempt=attempt,
                started=started,
                resumed=now,
                stratum=stratum,
                environment=environment,
                data_fingerprint=data_fingerprint,
            )
        )
        self.log_file.touch()
        os.truncate(self.log_file, log_bytes)
        self.error_file.unlink(missing_ok=True)
        if not log_bytes:  # going on takes the same code
            (self.path / "source.diff").write_bytes(diff.encode(errors="surrogateescape"))
            for folder in (self.final, self.evaluations):  # of what was logged before
                shutil.rmtree(folder, ignore_errors=True)
        self._note(f"RUNNING: {environment.get('command', '')}, {stratum}")

    def end(self, state: State, reason: str = "", error: str = "") -> None:
        """Close the attempt."""
        if error:
            with contextlib.suppress(OSError):  # the disk may be what it failed for
                self.error_file.write_text(error)
        status = self.status
        if not status.attempt:  # it failed before it could begin
            status = replace(status, attempt=uuid.uuid4().hex, started=time.time())
        try:
            self._write(replace(status, state=state, reason=reason, ended=time.time()))
        except OSError as failure:
            self.say(f"status {state} not recorded ({failure}); the run counts as not done")
        self._note(f"{state}: {reason}" if reason else state)

    def forget(self) -> bool:
        """Have the run carried out again from its first step; what it logged stays until then.

        Returns whether it is so: a run that a process has in hand is left alone.
        """
        try:
            with self.lock().acquire(timeout=0):
                self.clear_checkpoints()
                self._write(Status())
        except Timeout:
            return False
        return True

    def clear_checkpoints(self) -> None:
        """Delete the checkpoints: all at once for whoever looks, whenever this is cut short."""
        hidden = self.path / ".checkpoints"
        shutil.rmtree(hidden, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.checkpoints.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _write(self, status: Status) -> None:
        write_atomically(self.path / "status.json", json.dumps(asdict(status), indent=1))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; floats keep every digit. On a full disk it is kept, and appended with the next one."""
        with contextlib.suppress(OSError):
            self.on_row(step, metrics)
        row = {"time": round(time.time(), 3), "step": step, "metrics": metrics}
        self._unwritten += json.dumps(row).encode() + b"\n"
        try:
            self.flush_log()
        except OSError as error:
            self.say(f"step {step} not logged ({error}); it will be with the next one")

    def flush_log(self) -> int:
        """Write what is still unwritten, whole or not at all; the log's length in bytes. Raises OSError."""
        with self.log_file.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if self._unwritten and file.write(self._unwritten) != len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.truncate(self.log_file, end)
                raise
            self._unwritten = b""
            return file.tell()

    def say(self, text: str) -> None:
        """Append to events.log, for people; a full disk loses it."""
        self._note(text)
        with contextlib.suppress(OSError):  # a terminal that has gone away
            self.echo(text)

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError), (self.path / "events.log").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def events(self, start: int = 0) -> tuple[list[str], int]:
        """Complete lines of events.log from byte ``start`` on, without their time, and the byte after them."""
        lines, end = _lines(self.path / "events.log", start)
        return [line.decode(errors="replace")[20:] for line in lines], end

    def rows(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Complete lines from byte ``start`` on, and the byte after them; a line still being written is left.

        Raises ConfigError for a damaged line.
        """
        lines, end = _lines(self.log_file, start)
        try:
            return [_row(line) for line in lines], end
        except (ValueError, LookupError, TypeError, RecursionError):
            if start:  # for its number
                return self.rows()
            for number, line in enumerate(lines, start=1):
                record = parse_record(line, self.log_file, self._remedy, number)
                with contextlib.suppress(LookupError, TypeError, ValueError):
                    _row(line)
                    continue
                what = f"a row without step, time or metrics: {record!r:.60}"
                raise damaged(self.log_file, what, self._remedy, number) from None
            raise

    def final_metrics(self) -> Mapping[str, float]:
        """What a finished run logged with its last step. Raises ConfigError where the log lacks it."""
        rows, _ = self.rows()
        if not rows or not any(key.startswith("final/") for key in rows[-1]["metrics"]):
            what = f"{len(rows)} rows, and none of the last step of a finished run"
            raise damaged(self.log_file, what, self._remedy)
        metrics: Mapping[str, float] = rows[-1]["metrics"]
        return metrics


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    for value in (row["step"], row["time"], *row["metrics"].values()):
        float(value)
    return dict(row)


def _lines(file: Path, start: int) -> tuple[list[bytes], int]:
    """Whole lines from byte ``start`` on, and the byte after them."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            text = opened.read()
    except FileNotFoundError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), start + len(whole)
