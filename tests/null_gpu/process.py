"""Runs of the project on the null card, in a process that answers one after another.

``python -m tests.null_gpu.process`` reads a `Case` a line, as JSON, and prints what `carry_out` says of it. Under
torchrun, with a case and a folder as its arguments, each process carries it out and leaves its answer there.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from runners.execution import journal, one_run
from runners.execution.one_run import RunOptions, execute
from runners.planning.recipe import run_key
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import gates, start
from runners.training.determinism import make_deterministic
from runners.training.state import Progress, Training
from tests.null_gpu import card, values
from tests.null_gpu.cases import Case, recipe_of
from tests.null_gpu.plants import PLANTS


class Record:
    """What a run did, phase after phase: ``start``, then of each step ``step`` and what followed it, ``after``."""

    def __init__(self, seq_len: int) -> None:
        self.phases: list[dict[str, Any]] = []
        self._seq_len = seq_len
        self.training: Training | None = None
        card.take()

    def phase(self, name: str, step: int) -> None:
        """A phase is over."""
        events = card.take()
        self.phases.append(
            {
                "name": name,
                "step": step,
                "events": card.count(events),
                "attention": card.attention(events, self._seq_len),
                "graphs": counters["stats"]["unique_graphs"],
                "peak_bytes": torch.cuda.max_memory_allocated(),
            }
        )
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def watched(record: Record) -> Iterator[None]:
    """Inside, the phases of a run are recorded."""
    settle, journal_call = start.settle, journal.Journal.__call__

    def settled(*arguments: Any, **options: Any) -> tuple[int, bool]:
        record.phase("start", 0)
        found = settle(*arguments, **options)
        record.phase("settle", 0)
        return found

    def after_step(self: journal.Journal, training: Training) -> None:
        record.training = training
        record.phase("step", training.progress.step)
        try:
            journal_call(self, training)
        finally:
            record.phase("after", training.progress.step)

    with ExitStack() as stack:
        stack.enter_context(patch.object(journal, "LOG_POINTS", 1))
        stack.enter_context(patch.object(start, "settle", settled))
        stack.enter_context(patch.object(journal.Journal, "__call__", after_step))
        yield


def carry_out(case: Case) -> dict[str, Any]:
    """Run a case through `execute`, as a run of the project is; what it did."""
    recipe = recipe_of(case)
    run, said = RunFolder(Path("runs"), run_key(recipe.identity(), 0)), list[str]()

    def echo(text: str) -> None:
        said.append(text)
        torch.cuda.reset_peak_memory_stats()  # what ran out of memory, and says so, is not what the run will take

    run.echo = echo
    if "RANK" not in os.environ:  # of several processes none may be first here
        rmtree(run.path, ignore_errors=True)
    run.create(recipe, 0)
    record = Record(recipe.train.seq_len)
    options = RunOptions(micro_batch=case.micro_batch, compile_mode="on" if case.compiled else "off")
    card.limit_memory(case.memory_gib)
    try:
        with watched(record), PLANTS[case.plant]():
            if case.stop_after is not None:
                with suppress(Stopped):
                    execute(run, Path("cache"), "cuda", replace(options, stop_after=case.stop_after), StopRequest())
                record.phases.clear()
            keeps = case.stop_after is not None  # a file of 0.1 GB, which the other cases do without
            with patch.object(one_run, "keep_final", one_run.keep_final if keeps else lambda *arguments: True):
                execute(run, Path("cache"), "cuda", options, StopRequest())
        status, progress = run.status, record.training.progress if record.training else Progress()
        return {
            "state": status.state,
            "reason": status.reason,
            "error": run.error_file.read_text() if run.error_file.exists() else "",
            "said": said,
            "phases": record.phases,
            "micro_batch": progress.micro_batch,
            "compiled": progress.compiled,
        }
    finally:
        record.training = None
        torch._dynamo.reset()
        make_deterministic(False)
        gc.collect()
        torch.cuda.empty_cache()


def answer(line: str) -> str:
    """To a case as JSON, as JSON."""
    try:
        return json.dumps(carry_out(Case(**json.loads(line))))
    except Exception:
        return json.dumps({"state": "BROKEN", "reason": "the harness failed", "error": traceback.format_exc()})


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    values.disbelieve_gates(gates)
    if len(sys.argv) == 3:  # under torchrun
        Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(answer(sys.argv[1]))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    for line in sys.stdin:
        print(answer(line), file=answers, flush=True)


if __name__ == "__main__":
    main()
