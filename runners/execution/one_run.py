"""One run, from its folder's config.yaml to its status: begun or gone on with, trained, and closed."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import Timeout

from llama_variants import LlamaForCausalLM
from llama_variants.errors import ConfigError
from runners.data import Corpus, DataError, prepare
from runners.execution.journal import Journal
from runners.planning.recipe import run_key
from runners.runs.checkpoint import CheckpointError, Checkpoints
from runners.runs.environment import environment, uncommitted
from runners.runs.final import keep_final
from runners.runs.folder import RunFolder, State
from runners.runs.machine import resolve_device
from runners.runs.signals import StopRequest
from runners.runs.stratum import stratum, told
from runners.training.compile import keep_compiled_in
from runners.training.determinism import make_deterministic
from runners.training.gates import RunInvalid
from runners.training.loop import train
from runners.training.parallel import World, world
from runners.training.state import Training

RETRIES_S = (1, 5, 10)  # for a disk that is full at the end


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How runs are carried out, which bears on their results by rounding at most.

    ``save_every_s``: seconds between checkpoints. ``micro_batch``: windows that go through the model at a time; as many
    as fit into memory when None. ``compile_mode``: auto, on or off, see :mod:`runners.training.compile`.
    ``stop_after``: a step after which to save and leave.
    """

    save_every_s: float = 120.0
    micro_batch: int | None = None
    compile_mode: str = "auto"
    stop_after: int | None = None


def execute(
    run: RunFolder,
    cache: Path,
    device_name: str,
    options: RunOptions,
    stop: StopRequest,
    on_step: Callable[[Training], None] = lambda training: None,
) -> None:
    """Carry out one run in this process, or in those that torchrun started, and record what became of it.

    It resumes from the newest readable checkpoint, where that was made as it would be made now. While another process
    trains the run, this one waits. ``on_step`` sees the training after each step. Raises Stopped, and nothing that the
    run itself caused.
    """
    with world(resolve_device(device_name)) as (processes, device), _alone(run, processes):
        # Not before the first process has the lock, and knows how it went with whoever had it.
        (todo,) = processes.most(processes.first and run.checked_status().state != "FINISHED")
        if not todo:
            if processes.first:
                run.clear_checkpoints()  # which stay where a process is killed between its run's end and their deletion
            return
        try:
            _train(run, cache, device, options, stop, processes, on_step)
        except RunInvalid as invalid:
            _end(run, processes, "INVALID", str(invalid))
            processes.most(0)
        except CheckpointError as error:
            _end(run, processes, "FAILED", str(error))
        except ConfigError as error:
            _end(run, processes, "FAILED", "; ".join(map(str, error.problems)))
        except Exception as error:
            last = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {last[0] if last else ''}"
            _end(run, processes, "FAILED", reason, traceback.format_exc())
        except BaseException as error:
            _end(run, processes, "KILLED", str(error) or type(error).__name__)
            raise
        else:
            processes.most(0)  # all leave when the first is done, and not before: torchrun would stop it
        finally:
            stop.deferring = False
            gc.unfreeze()


def _train(
    run: RunFolder,
    cache: Path,
    device: torch.device,
    options: RunOptions,
    stop: StopRequest,
    processes: World,
    on_step: Callable[[Training], None],
) -> None:
    recipe, seed = run.config()
    if run_key(recipe.identity(), seed) != run.key:
        raise DataError("the files that it reads have changed since the run was planned")
    corpus = prepare(recipe.data, cache)
    if recipe.train.batch_size < processes.size:
        raise ValueError(f"{processes.size} processes, and {recipe.train.batch_size} windows in a step")
    make_deterministic(recipe.train.deterministic)
    here = stratum(recipe, device, torch.get_num_threads())
    say = run.say if processes.first else lambda text: None
    keep_compiled_in(cache / "inductor")
    with Checkpoints(run, options.save_every_s, say) as checkpoints:
        checkpoint = checkpoints.newest()
        before = run.status.stratum
        if checkpoint and (other := told(before, here) if before else "version of this program"):
            raise CheckpointError(f"its checkpoint was made with another {other}; --fresh starts it again")
        if processes.first:
            if checkpoint:
                checkpoints.set_aside(checkpoint)
            log_bytes = checkpoint.state["log_bytes"] if checkpoint else 0
            run.begin(here, environment(device, processes.size), corpus.fingerprint, log_bytes, uncommitted())
        if checkpoint:
            say(f"going on after step {checkpoint.state['step']}")
        stop.deferring = True  # until the run's end is recorded
        journal = Journal(run, recipe, checkpoints, stop, stop_after=options.stop_after, on_step=on_step)
        model = train(
            recipe,
            seed,
            corpus,
            device,
            journal,
            begin=journal.begin,
            say=say,
            micro_batch=options.micro_batch,
            compile_mode=options.compile_mode,
            checkpoint=checkpoint,
            world=processes,
        )
    if processes.first:
        _close(model, corpus, run)


def _close(model: LlamaForCausalLM, corpus: Corpus, run: RunFolder) -> None:
    """Record that a run is done. Its checkpoints go last, and where there is no room for its weights, before these."""
    for wait_s in (*RETRIES_S, None):
        try:
            run.flush_log()
            break
        except OSError as error:
            if wait_s is None:
                raise
            run.say(f"the end of the log not written ({error}); next try in {wait_s} s")
            time.sleep(wait_s)
    kept = keep_final(model, corpus, run)
    run.end("FINISHED")
    if run.status.state != "FINISHED":  # there was no room to say so: the same command goes on from a checkpoint
        return
    run.clear_checkpoints()
    if not kept:
        keep_final(model, corpus, run)


def _end(run: RunFolder, processes: World, state: State, reason: str = "", error: str = "") -> None:
    if processes.first:
        run.end(state, reason, error)


@contextlib.contextmanager
def _alone(run: RunFolder, processes: World) -> Iterator[None]:
    """The first process holds the run's lock; it says so when it has to wait for it."""
    if not processes.first:
        yield
        return
    lock = run.lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = run.status.environment.get("pid", "?")
        print(f"{run.path} is being trained by process {pid}; waiting until that is over", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
