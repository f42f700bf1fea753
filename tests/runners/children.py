"""Runs in child processes that can be killed: forked from a server that has torch loaded, so each takes a second."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from runners.execution.one_run import RunOptions, execute
from runners.planning.recipe import Recipe, run_key
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import memory
from runners.training.state import Training

SEED = 5
FOLDERS = ("checkpoints", "final", "status.json")  # file-system operations there count

WATCHED = ("open", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "tests.runners.children",
        "transformers.models.llama.modeling_llama",
        "runners.verdicts",
        "runners.execution.sweep",
    ]
)


@dataclass(frozen=True)
class Plan:
    """What a child does. ``die_at``: it kills itself before that file-system operation on its checkpoints or final
    weights, from 1, counted once ``after_steps`` steps are logged.

    ``memory_bytes``: address space that it may take beyond what it has after ``memory_from_step`` steps, 1 or more.
    """

    project: Path
    key: str
    save_every_s: float = 0.0
    micro_batch: int | None = None
    die_at: int | None = None
    after_steps: int = 0
    memory_bytes: int | None = None
    memory_from_step: int = 0
    step_takes_s: float = 0.0
    compile_mode: str = "off"


def new_run(project: Path, recipe: Recipe, seed: int = SEED, root: str = "runs") -> RunFolder:
    """A run folder with nothing but its recipe, and the corpus that it needs, built."""
    run = RunFolder(project / root, run_key(recipe.identity(), seed))
    run.create(recipe, seed)
    return run


def start(plan: Plan) -> BaseProcess:
    """The child, running."""
    child = _server.Process(target=_carry_out, args=(plan,))
    child.start()
    return child


def finish(plan: Plan, timeout_s: float = 120) -> int:
    """The exit code of a child that is left alone."""
    return _exit_code(start(plan), timeout_s)


def call(function: Callable[..., None], *arguments: Any, timeout_s: float = 600) -> int:
    """The exit code of a child that does no more than call a function, outside of pytest's import hooks."""
    child = _server.Process(target=function, args=arguments)
    child.start()
    return _exit_code(child, timeout_s)


def _exit_code(child: BaseProcess, timeout_s: float) -> int:
    child.join(timeout=timeout_s)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode


def wait_for(condition: Callable[[], Any], child: BaseProcess | None = None, timeout_s: float = 60.0) -> None:
    """Until ``condition()`` holds, or the child is gone."""
    deadline = time.monotonic() + timeout_s
    while not condition() and (child is None or child.is_alive()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.002)


def _carry_out(plan: Plan) -> None:
    os.chdir(plan.project)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    torch.set_num_threads(1)
    if plan.memory_bytes is not None:  # large blocks go back to the system when freed: glibc's M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(-3, 128 * 1024)
        memory.keep_freed = lambda device: None  # else what earlier steps took would last for all later ones
    if plan.die_at:
        _die_at(plan.die_at, plan.after_steps)
    stop = StopRequest()
    stop.install(signal.SIGINT, signal.SIGTERM)
    run = RunFolder(Path("runs"), plan.key)
    try:
        options = RunOptions(
            save_every_s=plan.save_every_s, micro_batch=plan.micro_batch, compile_mode=plan.compile_mode
        )
        execute(run, Path("cache"), "cpu", options, stop, on_step(plan))
    except Stopped as stopped:
        sys.exit(128 + stopped.signum)
    sys.exit(0 if run.status.state == "FINISHED" else 1)


def _die_at(number: int, after_steps: int) -> None:
    """By an audit hook: Python reports each open, rename, mkdir and remove before it happens."""
    count, seen = 0, False

    def enough() -> bool:
        nonlocal seen
        if not seen and "write" not in inside:
            inside.add("write")  # reading the log is an operation too
            seen = any(
                len(file.read_text().splitlines()) >= after_steps for file in Path("runs").glob("*/metrics.jsonl")
            )
            inside.discard("write")
        return seen

    inside: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        own = event in WATCHED and any(name in str(arguments[0]) for name in FOLDERS)
        if after_steps and own and not enough():
            return
        if own or event == "os.remove":  # whose path is relative to the folder
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def on_step(plan: Plan) -> Callable[[Training], None]:
    """Takes its time after each step, and from one of them on leaves the process little memory."""

    def after(training: Training) -> None:
        time.sleep(plan.step_takes_s)
        if plan.memory_bytes is not None and training.progress.step == plan.memory_from_step:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + plan.memory_bytes, resource.RLIM_INFINITY))

    return after
