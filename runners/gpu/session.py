"""``gpu``: carry out the steps that are left, within a given number of minutes; all results are in one folder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from llama_variants.errors import ConfigError, Problem
from runners.bench.suite import KEPT
from runners.data.atomic import write_atomically
from runners.execution.slots import Slots
from runners.gpu import manifest
from runners.gpu.pack import unpack
from runners.gpu.parts import AGAIN, PARTS, Step, predicted_minutes
from runners.runs.environment import environment
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest

RESULTS = "results.json"
RECORDS = Path("reports/bench")
KEPT_OF_A_RUN = ("config.yaml", "metrics.jsonl", "status.json", "events.log", "source.diff", "error.txt")
"""All but weights and checkpoints, which are large."""
PATIENCE_S = 60.0  # that a step which was asked to stop has to finish the training step in hand and to save
LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where results go, and how long it may take. ``base`` is what the user named."""

    out: Path
    cache: Path
    base: str | None
    slots: Slots
    minutes: float | None
    stop: StopRequest
    say: Callable[[str], None]

    def carry_out(self, steps: Sequence[Step]) -> tuple[list[str], list[str]]:
        """Names of steps that failed, and of those that are left.

        Raises Stopped on a signal, with all of it kept; ConfigError where another session is at work in this folder.
        """
        until = time.monotonic() + 60 * self.minutes if self.minutes is not None else float("inf")
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "gpu.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                received = "another session, or a step of one that was killed, still at work in this folder"
                allowed = "one at a time: wait for its end"
                raise ConfigError([Problem(path=(), received=received, allowed=allowed)]) from None
            return self._carry_out(steps, until, lock)

    def _carry_out(self, steps: Sequence[Step], until: float, lock: IO[str]) -> tuple[list[str], list[str]]:
        for place in ("steps", "logs"):
            (self.out / place).mkdir(parents=True, exist_ok=True)
        if dropped := _drop_damaged(self.out):
            self.say(f"not as the last session left it, and removed: {', '.join(dropped)}")
        self._collect(steps)  # at once: a session that is killed outright can be resumed
        _prepare(self.out, self.cache)
        minutes, basis = predicted_minutes(steps, self.slots, self.out)
        self.say(self._plan_text(steps, minutes, basis))
        failed, left = [], []
        self.stop.deferring = True
        try:
            for step in steps:
                if self.done(step):
                    continue
                remaining = until - time.monotonic()
                if remaining <= 0 or 60 * (step.minutes or 0) > remaining:
                    if remaining > 0:  # what cannot be resumed is not begun
                        left_s = f"{remaining / 60:.1f} are left"
                        self.say(f"{step.name}: not begun: takes {step.minutes:g} min in one go, {left_s}")
                    left.append(step.name)
                    continue
                code = self._run(step, until, lock)
                self._collect(steps)
                if self.stop.signum:
                    raise Stopped(self.stop.signum)
                if time.monotonic() >= until and code:
                    left.append(step.name)
                elif code:
                    failed.append(step.name)
        finally:
            self.stop.deferring = False
            self._collect(steps)
        return failed, left

    def done(self, step: Step) -> bool:
        """Whether it came to a good end before."""
        record = self._record(step)
        return bool(record and record["code"] == 0 and record["words"] == _told(step))

    def _record(self, step: Step) -> dict[str, Any] | None:
        file = self.out / "steps" / f"{step.name}.json"
        return dict(json.loads(file.read_text())) if file.exists() else None

    def _plan_text(self, steps: Sequence[Step], minutes: Mapping[str, float], basis: str) -> str:
        lines = [f"{'step':<18} {'runs':>4} {'minutes':>8}  part"]
        total, last = 0.0, ""
        for step in steps:
            done = self.done(step)
            total += 0 if done else minutes[step.name]
            if self.minutes is not None and total > self.minutes:
                last = last or step.name
            told = "done" if done else f"{minutes[step.name]:.1f}"
            lines.append(f"{step.name:<18} {len(step.runs) or '':>4} {told:>8}  {step.part}: {PARTS[step.part]}")
        there = f"  of MINUTES={self.minutes:g}" if self.minutes is not None else ""
        lines.append(f"{'left':<18} {'':>4} {total:>8.1f}{there}")
        lines.append(f"minutes of runs are estimated from {basis}; those of tests and bench are fixed guesses")
        if last:
            lines.append(f"the minutes will be over in {last}; what matters more comes first with PARTS=")
        return "\n".join(lines)

    def _run(self, step: Step, until: float, lock: IO[str]) -> int:
        """The step's exit code. It gets SIGINT when the minutes are over, or when this process was asked to stop.

        It holds ``lock`` too, which is then held to its end, even where this process is killed before.
        """
        _make_place(step.folder)
        began, known = time.monotonic(), _stamps(RECORDS)
        # A file for each attempt: what is listed in the results is not written to again.
        attempt = len(list((self.out / "logs").glob(f"{step.name}.*")))
        log = self.out / "logs" / f"{step.name}.{attempt}.log"
        self.say(f"{step.name}: python -m {' '.join(step.words)} (output in {log})")
        own = {"PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "CUDA_TESTS": "yes"}
        with log.open("wb") as file:
            # In a session of its own, so that a terminal's Ctrl-C reaches it once, by way of this process.
            child = subprocess.Popen(
                [sys.executable, "-m", *step.words],
                cwd=step.folder,
                env=os.environ | own,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
            try:
                while child.poll() is None and time.monotonic() < until and not self.stop.signum:
                    time.sleep(LOOK_S)
                if child.poll() is None:
                    child.send_signal(signal.SIGINT)
                    child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                pass
            finally:  # after a second Ctrl-C, too, nothing stays behind on the card
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
        seconds, before = time.monotonic() - began, self._record(step)
        for kept, stamp in _stamps(RECORDS).items():  # before the step counts as done; without older ones
            if known.get(kept) != stamp:
                (self.out / "bench").mkdir(exist_ok=True)
                shutil.copyfile(kept, self.out / "bench" / kept.name)
        record = {
            "name": step.name,
            "part": step.part,
            "words": _told(step),
            "code": code,
            "seconds": round(seconds + (before["seconds"] if before else 0), 1),
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_atomically(self.out / "steps" / f"{step.name}.json", json.dumps(record, indent=1) + "\n")
        self.say(f"{step.name}: {'done' if not code else f'exit code {code}, see {log}'}, {seconds / 60:.1f} min")
        return code

    def _collect(self, steps: Sequence[Step]) -> None:
        """Bring the folder up to date: the steps' runs without weights, and the digest of every file."""
        for key in sorted({run.key for step in steps for run in step.runs}):
            if (Path("runs") / key / "status.json").exists():
                _copy(Path("runs") / key, self.out / "runs" / key)
        device = torch.device(self.slots.devices[0])
        around = environment(device)
        head = {
            "pack": manifest.read(Path(), "pack.json")["commit"] if Path("pack.json").exists() else None,
            "base": self.base,
            "environment": {name: around[name] for name in ("device", *KEPT) if name in around},
        }
        manifest.write(self.out, RESULTS, head)


def _told(step: Step) -> str:
    """A step's command without where this folder is."""
    return " ".join(step.words).replace(f"{Path.cwd()}/", "")


def _stamps(folder: Path) -> dict[Path, int]:
    """When each file of a folder was last written."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("*") if file.is_file()}


def _drop_damaged(out: Path) -> list[str]:
    """Remove what is not as an earlier session left it, a run as a whole; what was removed."""
    if not (out / RESULTS).exists():
        return []
    whole = set(manifest.read(out, RESULTS)["files"]) - set(bad := manifest.damaged(out, RESULTS))
    dropped = []
    for file in (out / name for name in bad):
        if file.exists():
            file.unlink()
            dropped.append(str(file.relative_to(out)))
    for run in sorted((out / "runs").glob("*/")):
        files = {str(file.relative_to(out)) for file in run.iterdir()}
        if not files <= whole or any(Path(name).parent == run.relative_to(out) for name in bad):
            shutil.rmtree(run)
            dropped.append(str(run.relative_to(out)))
    return dropped


def _prepare(out: Path, cache: Path) -> None:
    """Carried tokens, and finished runs of an earlier session on another machine."""
    unpack(Path("carried"), cache)
    for kept in (out / "runs").glob("*/"):
        here = RunFolder(Path("runs"), kept.name)
        if not here.path.exists() and RunFolder(out / "runs", kept.name).status.state == "FINISHED":
            _copy(kept, here.path)


def _copy(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT_OF_A_RUN:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def _make_place(folder: Path) -> None:
    """A folder with run folders of its own, and this one's experiments and cache."""
    if folder == AGAIN:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("experiments", "cache"):
            if not (folder / name).exists():
                (folder / name).symlink_to(Path(name).absolute())


def check_out(out: Path, base: str | None) -> None:
    """Raises ConfigError where results on another base, or something else, are in the way."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        before = manifest.read(out, RESULTS).get("base")
    except ValueError as error:
        problem = Problem(path=("--out",), received=f"{out}: {error}", allowed="a new folder, or one to go on in")
        raise ConfigError([problem]) from None
    if before != base:
        received, theirs = (f"base {name}" if name else "no base named" for name in (base, before))
        allowed = f"another --out, or what the results in {out} were made with: {theirs}"
        raise ConfigError([Problem(path=("--base",), received=received, allowed=allowed)])
