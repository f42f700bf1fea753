"""``gpu``: carry out the steps that are left, within the minutes there are; what comes of each is in one folder."""

from __future__ import annotations

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
from typing import Any

import torch

from llama_variants.errors import ConfigError, Problem
from runners.bench.suite import KEPT
from runners.execution.slots import Slots
from runners.gpu import manifest
from runners.gpu.pack import unpack
from runners.gpu.parts import AGAIN, PARTS, Step, predicted_minutes
from runners.runs.environment import environment
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest

RESULTS = "results.json"
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
        """Names of steps that failed, and of those that are left. Raises Stopped on a signal, with all of it kept."""
        began = time.monotonic()
        until = began + 60 * self.minutes if self.minutes is not None else float("inf")
        for place in ("steps", "logs"):
            (self.out / place).mkdir(parents=True, exist_ok=True)
        _prepare(self.out, self.cache)
        minutes, basis = predicted_minutes(steps, self.slots, self.out)
        self._collect()  # so that a session that is killed in its first step can go on
        self.say(self._plan_text(steps, minutes, basis))
        failed, left = [], []
        self.stop.deferring = True
        try:
            for step in steps:
                if self.done(step):
                    continue
                remaining = until - time.monotonic()
                if remaining <= 0 or 60 * (step.minutes or 0) > remaining:
                    if remaining > 0:  # what cannot be gone on with is not begun
                        left_s = f"{remaining / 60:.1f} are left"
                        self.say(f"{step.name}: not begun: takes {step.minutes:g} min in one go, {left_s}")
                    left.append(step.name)
                    continue
                code = self._run(step, until)
                self._collect()
                if self.stop.signum:
                    raise Stopped(self.stop.signum)
                if time.monotonic() >= until and code:
                    left.append(step.name)
                elif code:
                    failed.append(step.name)
        finally:
            self.stop.deferring = False
            self._collect()
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
        there = f"  of {self.minutes:g} there are" if self.minutes is not None else ""
        lines.append(f"{'left':<18} {'':>4} {total:>8.1f}{there}")
        lines.append(f"minutes of runs: by {basis}; of tests and bench: a guess")
        if last:
            lines.append(f"the minutes will be over in {last}; what matters more comes first with PARTS=")
        return "\n".join(lines)

    def _run(self, step: Step, until: float) -> int:
        """The step's exit code. It gets SIGINT when the minutes are over, or when this process was asked to stop."""
        _make_place(step.folder)
        began, log = time.monotonic(), self.out / "logs" / f"{step.name}.log"
        self.say(f"{step.name}: python -m {' '.join(step.words)} (output in {log})")
        own = {"PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "CUDA_TESTS": "yes"}
        with log.open("ab") as file:
            # In a session of its own, so that a terminal's Ctrl-C reaches it once, by way of this process.
            child = subprocess.Popen(
                [sys.executable, "-m", *step.words],
                cwd=step.folder,
                env=os.environ | own,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while child.poll() is None and time.monotonic() < until and not self.stop.signum:
                time.sleep(LOOK_S)
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        seconds, before = time.monotonic() - began, self._record(step)
        record = {
            "name": step.name,
            "part": step.part,
            "words": _told(step),
            "code": code,
            "seconds": round(seconds + (before["seconds"] if before else 0), 1),
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        (self.out / "steps" / f"{step.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        self.say(f"{step.name}: {'done' if not code else f'exit code {code}, see {log}'}, {seconds / 60:.1f} min")
        return code

    def _collect(self) -> None:
        """Bring the folder up to date: records, runs without weights, and the digest of every file."""
        for folder in Path("runs").glob("*/"):
            if (folder / "status.json").exists():
                _copy(folder, self.out / "runs" / folder.name)
        if (records := Path("reports/bench")).exists():
            shutil.copytree(records, self.out / "bench", dirs_exist_ok=True)
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
