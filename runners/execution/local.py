"""Worker processes on this machine; each stays warm and carries out one run after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from filelock import Timeout

from runners.execution.one_run import RunOptions, execute
from runners.runs.folder import RunFolder, State
from runners.runs.signals import Stopped, StopRequest


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

    def __init__(self, root: Path, cache: Path, devices: Sequence[str], threads: int, options: RunOptions) -> None:
        self.root, self.cache, self.devices, self.threads, self.options = root, cache, devices, threads, options
        # A process that is forked after CUDA was used, if only for a card's name, cannot use it.
        self._context = multiprocessing.get_context("spawn")

    def run(self, keys: Sequence[str], poll_s: float = 0.5) -> Generator[Finished | None]:
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
            self._stop(workers)

    def _stop(self, workers: Sequence[_Worker]) -> None:
        """Let the workers go; one with a run in hand saves its state first. Another interrupt, and they are killed."""
        for worker in workers:
            worker.pipe.close()
            if worker.key:
                worker.process.terminate()
        try:
            for worker in workers:
                worker.process.join()
        except BaseException:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
            raise
        finally:
            for worker in workers:
                if worker.key:
                    self._close(worker.key, "KILLED", "stopped at once, without saving")

    def _start(self, device: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        # Read by OpenMP when torch is imported; two processes with all threads each would starve one another.
        os.environ |= {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        process = self._context.Process(
            target=_work, args=(theirs, self.root, self.cache, device, self.threads, self.options), daemon=True
        )
        # A worker leaves the terminal's interrupt to its parent, from its first import on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    def _hand_over(self, worker: _Worker, waiting: list[str]) -> None:
        worker.key = waiting.pop(0) if waiting else None
        if worker.key:
            with contextlib.suppress(OSError):  # a worker that is dead already is noticed when it is waited for
                worker.pipe.send(worker.key)

    def _bury(self, worker: _Worker, key: str) -> None:
        worker.process.join()
        code = worker.process.exitcode
        more = "; the system kills what takes too much memory: try --micro-batch 1" if code == -signal.SIGKILL else ""
        self._close(key, "FAILED", f"the worker process died (exit code {code}{more})")

    def _close(self, key: str, state: State, reason: str) -> None:
        """Say what became of a run whose worker did not, unless another process has taken it up."""
        run = RunFolder(self.root, key)
        with contextlib.suppress(Timeout), run.lock().acquire(timeout=0):
            if run.status.state in ("NEW", "RUNNING"):
                run.end(state, reason)


def _watch_parent(stop: StopRequest) -> None:
    """A parent that was killed outright tells nobody; its workers save and leave all the same."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.signum = signal.SIGTERM


def _work(pipe: Connection, root: Path, cache: Path, device: str, threads: int, options: RunOptions) -> None:
    """A worker's whole life: take a key, carry out its run, say so; until the pipe closes."""
    for signum in (signal.SIGINT, signal.SIGHUP):  # from the terminal, which sends them to the parent too: it decides
        signal.signal(signum, signal.SIG_IGN)
    stop = StopRequest(patient=True)
    stop.install(signal.SIGTERM)
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        try:
            key = pipe.recv()
            execute(RunFolder(root, key), cache, device, options, stop)
            pipe.send(key)
        except (EOFError, BrokenPipeError, Stopped):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is nothing left to save, and exit handlers to run
            return
