"""Make again what a training.log says, and hold it against that: the same recipe, seed, data and, if it can be, bits.

A log without a recipe, of another project say, is judged by what a log alone can show, and laid beside one of ours.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from matplotlib.figure import Figure

from analysis.report.log_figure import log_figure
from llama_variants.errors import ConfigError, Problem
from runners.data.atomic import write_atomically
from runners.data.batches import Corpus
from runners.data.shards import prepare
from runners.execution.one_run import RunOptions, execute
from runners.planning.arms import PlannedRun
from runners.reproduce.first_batch import (
    FirstBatch,
    check_can_hold,
    first_batch_losses,
    first_batch_recipe,
    hold_first_batch,
    read_first_batch,
)
from runners.reproduce.log_compare import Known, Outcome, Way, hold_exactly, hold_statistically, outcome_text, unchecked
from runners.reproduce.promise import Promise, ReproduceRequest, by_run, promise_of, read_logs, run_of, way_of
from runners.reproduce.same_run import check_comparable, check_same_data
from runners.reproduce.training_log import TrainingLog, training_log
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.runs.stratum import stratum
from runners.training.gates import log_faults

OURS = Path("training.log")


def reproduce(
    request: ReproduceRequest,
    root: Path,
    cache: Path,
    stop: StopRequest,
    say: Callable[[str], None],
    progress: Callable[[str, int], Callable[[int, Mapping[str, float]], None]],
) -> tuple[bool, list[Outcome]]:
    """Make again what the request's files say.

    Args:
        request: the files, and how.
        root: where runs and figures go.
        cache: of wheels and shards.
        stop: says when to save and leave; the same request goes on.
        say: receives lines of text.
        progress: of a title and a number of steps, makes what is called with every logged step.

    Returns:
        Whether everything agrees and is valid, and what came of each file that was held against something.

    Raises:
        ConfigError: for a file that cannot be read, is of another recipe or of other data; before anything is trained.
        DataError: when the data cannot be had.
        Stopped: on a signal.
    """
    files = list(dict.fromkeys(request.files))
    known = read_logs([file for file in files if file.suffix != ".json"])
    records = {file: read_first_batch(file) for file in files if file.suffix == ".json"}
    promises = [promise_of(group, request) for group in by_run(known)]
    batches = {file: run_of(file, record.command)[1] for file, record in records.items()}
    for file, run in batches.items():
        check_can_hold(file, records[file])
        check_comparable(file, records[file].recipe, first_batch_recipe(run.recipe, run.seed))
    if request.out and [promise.whole for promise in promises] != [True]:
        problem = Problem(path=("--out",), received=str(request.out), allowed="logs of one run, and all of its steps")
        raise ConfigError([problem])
    corpora: dict[str, Corpus] = {}
    for file, run, told in [
        *((one.file, promise.run, one.log.header["data"]) for promise in promises for one in promise.known),
        *((file, run, records[file].data) for file, run in batches.items()),
    ]:
        corpora[run.key] = corpora.get(run.key) or prepare(run.recipe.data, cache, say)
        check_same_data(file, told.partition(",")[0], corpora[run.key])
    sound = not [one for one in known if not _is_sound(one, request.vocab_size, say)]  # each of them is told
    for one in known:
        if not one.log.is_ours:
            _lay_beside(one, [other for other in known if other.log.is_ours], root, say)
    outcomes: list[Outcome] = []
    for file, run in batches.items():
        outcomes.append(_first_batch(file, records[file], run, corpora[run.key], request, say))
    for promise in promises:
        found, failed = _again(promise, corpora[promise.run.key], request, root, cache, stop, say, progress)
        outcomes += found
        sound &= not failed
    verdicts = {outcome.verdict for outcome in outcomes}
    if verdicts == {"not checked"}:
        say("nothing was checked: STEPS= asks for steps, and logs of other ways show how far these may lie apart")
    return sound and "departs" not in verdicts and ("agrees" in verdicts or not outcomes), outcomes


# What a log alone shows


def _is_sound(one: Known, vocab_size: int, say: Callable[[str], None]) -> bool:
    """Whether no validity gate fails that a log alone can show."""
    log = one.log
    size = log.recipe["model"]["vocab_size"] if log.is_ours else vocab_size
    faults = list(log_faults(log.steps, [log.losses[s] for s in log.steps], [log.rates[s] for s in log.steps], size))
    if faults:
        said = f"{one.file}: INVALID, as its lines alone show (of a model with {size:,} tokens)"
        say("\n".join([said, *(f"  {fault}" for fault in faults)]))
    elif not log.is_ours:
        say(f"{one.file}: no gate fails that its lines alone can show (of a model with {size:,} tokens)")
    return not faults


def _lay_beside(one: Known, ours: Sequence[Known], root: Path, say: Callable[[str], None]) -> None:
    """A table and a figure of another project's log beside one of ours, step by step."""
    say("  it names no recipe, so it cannot be made again")
    if not ours and OURS.exists() and not OURS.samefile(one.file):
        with contextlib.suppress(ConfigError):
            ours = [other for other in read_logs([OURS]) if other.log.is_ours]
    steps = list(dict.fromkeys(one.log.steps))
    beside = ours[0].log.losses if ours else {}
    name = str(ours[0].file) if ours else "nothing"
    # The nearest step of ours, where there is one near.
    nearest = {s: min(beside, key=lambda t: abs(t - s)) for s in steps} if beside else {}
    here = [beside[t] if (t := nearest.get(s)) and abs(t - s) <= 0.1 * s + 5 else math.nan for s in steps]
    shown = sorted({0, len(steps) - 1, *range(0, len(steps), max(1, len(steps) // 8))})
    say(f"  {'step':>8} {'loss there':>11} {f'in {name}':>20}")
    for i in shown:
        near = f"{here[i]:.4f}" if math.isfinite(here[i]) else "–"
        say(f"  {steps[i]:>8} {one.log.losses[steps[i]]:>11.4f} {near:>20}")
    there = [one.log.losses[s] for s in steps]
    drawing = log_figure(f"{one.file} beside {name}", steps, there, here, names=(str(one.file), name))
    say(f"  figure: {_draw(drawing, root, one.file)}")


def _draw(drawing: Figure, root: Path, file: Path) -> Path:
    target = root / f"{'-'.join(part for part in file.with_suffix('').parts if part not in ('/', '..'))}.svg"
    root.mkdir(parents=True, exist_ok=True)
    drawing.savefig(target)
    return target


# Making it again


def _first_batch(
    file: Path,
    record: FirstBatch,
    run: PlannedRun,
    corpus: Corpus,
    request: ReproduceRequest,
    say: Callable[[str], None],
) -> Outcome:
    count = run.recipe.train.batch_size
    rows = sorted({i * count // min(request.rows, count) for i in range(min(request.rows, count))})
    say(f"{record.run}: the first batch, {len(rows)} of {count} windows in float32")
    torch.set_num_threads(request.threads or os.cpu_count() or 1)
    outcome = hold_first_batch(file, record, rows, first_batch_losses(run.recipe, run.seed, corpus, rows))
    say(outcome_text(outcome))
    return outcome


def _again(
    promise: Promise,
    corpus: Corpus,
    request: ReproduceRequest,
    root: Path,
    cache: Path,
    stop: StopRequest,
    say: Callable[[str], None],
    progress: Callable[[str, int], Callable[[int, Mapping[str, float]], None]],
) -> tuple[list[Outcome], str]:
    """The outcomes of a run's logs, and what went wrong if anything did."""
    way, lead = way_of(promise.known, promise.device, request)
    num_steps, steps = promise.run.recipe.train.num_steps, promise.steps
    if not steps:
        basis = "nothing: too large a model for this processor, but for the steps that STEPS= asks for"
        outcome = Outcome(file=lead.file, exact=False, basis=basis, rows=(), unchecked=unchecked(lead.log, 0))
        say(outcome_text(outcome))
        return [outcome], ""
    say(f"{promise.title}: {steps:,} of {num_steps:,} steps again, on {way}")
    text, failed = train_again(promise, way, root / "runs", cache, corpus, stop, progress(promise.title, num_steps))
    if failed:
        say(f"{promise.title}: {failed}")
    if not text:
        return [], failed
    again = TrainingLog.parse(text)
    made = Way.of(again)
    exact = [one for one in promise.known if one.repeats and Way.of(one.log) == made]
    outcomes = [hold_exactly(one, again, steps, num_steps) for one in exact]
    if not outcomes:
        others = [one.log for one in promise.known if one is not lead]
        outcomes = [hold_statistically(lead, again, steps, others, promise.sigma)]
    held = {outcome.file for outcome in outcomes}
    for outcome in outcomes:
        say(outcome_text(outcome))
    if beside := [str(one.file) for one in promise.known if one.file not in held]:
        told = "not needed" if exact else "used for the scatter alone"
        say(f"not checked, {told}, made in other ways: {', '.join(beside)}")
    rows = [row for row in outcomes[0].rows if row.kind == "loss"]
    band = [row.allowed for row in rows]
    drawing = log_figure(
        f"{promise.title}: {outcomes[0].file} and the run made again",
        [row.step for row in rows],
        [row.there for row in rows],
        [row.here for row in rows],
        None if outcomes[0].exact else band,
    )
    say(f"  figure: {_draw(drawing, root, outcomes[0].file)}")
    if request.out and not failed:
        write_atomically(request.out, text)
        say(f"  written: {request.out}")
    return outcomes, failed


def train_again(
    promise: Promise,
    way: Way,
    root: Path,
    cache: Path,
    corpus: Corpus,
    stop: StopRequest,
    on_row: Callable[[int, Mapping[str, float]], None],
) -> tuple[str, str]:
    """Train the steps that were promised, in a folder of their own; the log, and what went wrong if anything did.

    Goes on with what a signal had stopped; what had come to its end is made anew. Raises Stopped on a signal.
    """
    run, steps = promise.run, promise.steps
    torch.set_num_threads(way.threads or torch.get_num_threads())
    compile_mode = "on" if way.compiled else "off"
    name = f"{way.platform}-{way.threads}-{way.micro_batch}-{compile_mode}-{steps}"
    folder = RunFolder(root / name, run.key)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{name}.lock"):  # the same command twice at once: one waits
        status = folder.status
        stopped = status.state in ("RUNNING", "KILLED") and status.reason != Stopped(0).args[0]
        here = stratum(promise.run.recipe, promise.device, torch.get_num_threads())
        if not stopped or status.stratum is None or status.stratum.differs(here):
            shutil.rmtree(folder.path, ignore_errors=True)
        folder.create(run.recipe, run.seed)
        folder.on_row = on_row
        options = RunOptions(
            save_every_s=120.0,
            micro_batch=way.micro_batch or None,
            compile_mode=compile_mode,
            stop_after=None if promise.whole else steps,
        )
        try:
            execute(folder, cache, str(promise.device), options, stop)
        except Stopped as error:
            if error.signum:
                raise
        status = folder.status
        failed = f"{status.state}: {status.reason}" if status.state in ("INVALID", "FAILED") else ""
        if not folder.rows()[0]:
            return "", failed
        compiled = way.compiled and not any(event.startswith("not compiled") for event in folder.events()[0])
        log = training_log(promise.title, promise.command, folder, corpus, promise.device, compiled=compiled)
        return log, failed
