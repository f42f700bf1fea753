"""Worker processes on this machine; each stays warm and carries out one run after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from runners.recipe import run_key
from runners.store import RunFolder


@dataclass(frozen=True)
class Finished:
    """A run that a worker is done with, whatever became of it; its folder says what."""

    key: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    key: str | None = None  # of the run in hand


class LocalLauncher:
    """Carries out runs in ``jobs`` processes, each with its own device or its share of the processor's threads.

    A worker that dies takes only its own run with it: the run is marked FAILED and a new worker takes the next.
    """

    def __init__(self, root: Path, cache: Path, devices: Sequence[str], threads: int) -> None:
        self.root, self.cache, self.devices, self.threads = root, cache, devices, threads
        self._context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA

    def run(self, keys: Sequence[str], poll_s: float = 0.5) -> Iterator[Finished | None]:
        """Carry out the runs called ``keys``, in order; yields each when done, and None every ``poll_s`` between."""
        waiting = list(keys)
        workers = [self._start(device) for device in self.devices[: len(keys)]]
        try:
            for worker in workers:
                self._hand_over(worker, waiting)
            while any(worker.key for worker in workers):
                ready = wait([worker.pipe for worker in workers if worker.key], timeout=poll_s)
                for i, worker in enumerate(workers):
                    if worker.pipe not in ready:
                        continue
                    key = worker.key
                    assert key is not None
                    try:
                        worker.pipe.recv()
                    except (EOFError, OSError):  # the end of the pipe, or a reset with our key still in it
                        self._bury(worker, key)
                        workers[i] = worker = self._start(self.devices[i])
                    yield Finished(key)
                    self._hand_over(worker, waiting)
                yield None
        finally:
            for worker in workers:
                worker.pipe.close()
                if worker.key:
                    worker.process.terminate()  # the worker marks its run KILLED
            for worker in workers:
                worker.process.join(timeout=10)
                if worker.process.is_alive():
                    worker.process.kill()

    def _start(self, device: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        # Read by OpenMP when torch is imported; two processes with all threads each would starve one another.
        os.environ |= {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        process = self._context.Process(
            target=_work, args=(theirs, self.root, self.cache, device, self.threads), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _hand_over(self, worker: _Worker, waiting: list[str]) -> None:
        worker.key = waiting.pop(0) if waiting else None
        if worker.key:
            with contextlib.suppress(OSError):  # a worker that is dead already is noticed when it is waited for
                worker.pipe.send(worker.key)

    def _bury(self, worker: _Worker, key: str) -> None:
        worker.process.join()
        run = RunFolder(self.root, key)
        if run.status.state in ("NEW", "RUNNING"):
            run.end("FAILED", f"the worker process died (exit code {worker.process.exitcode})")


def _work(pipe: Connection, root: Path, cache: Path, device: str, threads: int) -> None:
    """A worker's whole life: take a key, carry out its run, say so; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    signal.signal(signal.SIGTERM, _stop)
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            key = pipe.recv()
        except EOFError:
            return
        try:
            execute(RunFolder(root, key), cache, device)
        except _Stopped:
            return
        pipe.send(key)


class _Stopped(BaseException):
    """SIGTERM has come."""


def _stop(signum: int, frame: Any) -> None:
    raise _Stopped


def execute(run: RunFolder, cache: Path, device_name: str) -> None:
    """Carry out one run in this process and record what became of it; raises nothing that the run itself caused."""
    import torch

    from runners.data import DataError, prepare
    from runners.determinism import environment, resolve_device, stratum
    from runners.health import RunInvalid
    from runners.train import train

    with run.lock():
        if run.status.state == "FINISHED":
            return  # another process was faster
        device = resolve_device(device_name)
        try:
            recipe, seed = run.config()
            if run_key(recipe.identity(), seed) != run.key:
                raise DataError("the files that it reads have changed since the run was planned")
            corpus = prepare(recipe.data, cache)
            recipe.check_corpus(corpus)
            run.begin(stratum(device, torch.get_num_threads()), environment(device), corpus.fingerprint)
            train(recipe, seed, corpus, run, device)
        except RunInvalid as reason:
            run.end("INVALID", str(reason))
        except Exception as error:
            last = str(error).strip().splitlines()
            run.end("FAILED", f"{type(error).__name__}: {last[0] if last else ''}", traceback.format_exc())
        except BaseException:
            run.end("KILLED", "stopped by a signal")
            raise
        else:
            run.end("FINISHED")
