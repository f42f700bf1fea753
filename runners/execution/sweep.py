"""Carry out a plan: skip what is done, run the rest, mirror as it goes, and say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runners.execution.mirrors import Mirroring, Mirrors
from runners.execution.slots import Slots
from runners.execution.timing import duration
from runners.execution.todo import made_apart, made_otherwise, statuses, unfinished
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.runs.folder import STATES, RunFolder
from runners.runs.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from runners.execution.local import LocalLauncher
    from runners.execution.one_run import RunOptions

PLAIN_EVERY_S = 15.0  # between progress lines where nothing can be redrawn


def run_plan(
    plan: Plan,
    *,
    root: Path,
    cache: Path,
    slots: Slots,
    console: Console,
    stop: StopRequest,
    options: Callable[[], RunOptions] | None = None,
    fresh: bool = False,
    mirrors: Mirrors | None = None,
) -> list[PlannedRun]:
    """Carry out every unfinished run of ``plan``, mirrored as they go. Returns the runs that did not finish.

    A run that fails or is invalid is recorded and does not stop the others. On an interrupt the runs in hand save
    their state and are marked KILLED, here and in the mirror, before it goes on its way. ``fresh`` begins again
    what is not done, and carries out again what was made otherwise, so that all runs of the plan can be compared.
    ``options`` is asked for when there is a run to carry out, since its module loads the model's; ``mirrors``: those of
    the command, which reports from them afterwards.
    """
    from runners.data.overlap import refuse_overlap
    from runners.data.shards import known_sizes, prepare

    known = statuses(plan, root)
    others, old = made_otherwise(plan, root, known, slots), made_apart(plan, known, slots)
    if fresh:
        for run in {*others, *old, *unfinished(plan, known)}:
            if not RunFolder(root, run.key).forget():
                console.print(f"note: {run.arm} seed {run.seed} is being trained, and left alone", highlight=False)
        known = statuses(plan, root)
    todo = unfinished(plan, known)
    if not fresh:
        _note_incomparable(others if todo else {}, old, console)
    if todo:
        data = plan.arms[0].recipe.data
        plan.check_sizes(known_sizes(data, cache))  # before much is tokenized for nothing
        least = min(arm.recipe.model.vocab_size for arm in plan.arms)
        corpus = prepare(
            data, cache, say=lambda text: console.print(f"data: {text}", highlight=False), vocab_size=least
        )
        plan.check_sizes(corpus.sizes)
        refuse_overlap(corpus)
    for run in todo:
        RunFolder(root, run.key).create(run.recipe, run.seed)
    if todo:
        from runners.execution.local import LocalLauncher
        from runners.execution.one_run import RunOptions

        launcher = LocalLauncher(root, cache, slots.devices, slots.threads, options() if options else RunOptions())
        with Mirroring(mirrors or Mirrors(root), plan, plan.runs()):
            _carry_out(plan, todo, launcher, root, console, stop)
    return unfinished(plan, statuses(plan, root))


def _note_incomparable(others: Mapping[PlannedRun, str], old: Sequence[PlannedRun], console: Console) -> None:
    """Say which runs that were made cannot be compared with what is made now."""
    if others:
        console.print(
            f"note: {len(others)} runs were made with another {next(iter(others.values()))}; those done are not "
            "comparable with new ones, those begun cannot resume. ARGS=--fresh reruns them.",
            highlight=False,
        )
    if old:
        console.print(
            f"note: {len(old)} runs were made hours before the others, on hardware that does not repeat its bits; what "
            "is made now cannot be compared with them. ARGS=--fresh reruns them, train.deterministic would not "
            "need it.",
            highlight=False,
        )


def _carry_out(
    plan: Plan,
    todo: Sequence[PlannedRun],
    launcher: LocalLauncher,
    root: Path,
    console: Console,
    stop: StopRequest,
) -> None:
    board = _Board(plan, todo, root)
    shown = time.monotonic()
    live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
    if live:
        live.start()

    working = launcher.run([run.key for run in todo])
    stop.deferring = True
    try:
        for finished in working:
            now = time.monotonic()
            if stop.signum:
                raise Stopped(stop.signum)
            for line in board.events():
                console.print(line, highlight=False)
            if finished:
                console.print(board.finish(finished.key), highlight=False)
            if live:
                live.update(Group(*map(Text, board.lines())))
            elif now - shown > PLAIN_EVERY_S:
                console.print(*board.lines(), sep="\n", highlight=False)
                shown = now
    finally:
        try:
            if live:
                live.stop()
            if stop.signum:
                console.print("stopping: the runs in hand save their state; once more to stop at once", highlight=False)
            working.close()  # where it was interrupted, this waits for what is being saved
        finally:
            for line in board.events():
                console.print(line, highlight=False)
            stop.deferring = False


class _Board:
    """What the progress display says: which run of how many, step, loss, tokens/s, time left."""

    def __init__(self, plan: Plan, todo: Sequence[PlannedRun], root: Path) -> None:
        self.number = {run.key: i for i, run in enumerate(todo, start=1)}
        self.runs = {run.key: run for run in todo}
        self.folders = {run.key: RunFolder(root, run.key) for run in todo}
        self.offsets = dict.fromkeys(self.runs, ("", 0))  # attempt, and bytes of its log that were read
        self.heard = {key: folder.events()[1] for key, folder in self.folders.items()}  # bytes of events.log
        self.latest: dict[str, dict[str, float]] = {}
        self.before: dict[str, int] = {}  # tokens of what is resumed
        self.evaluated: set[str] = set()
        self.done: set[str] = set()
        self.began = time.time()

    def _read(self, key: str) -> dict[str, float]:
        attempt, start = self.offsets[key]
        current = self.folders[key].status.attempt
        rows, end = self.folders[key].rows(start if attempt == current else 0)
        self.offsets[key] = current, end
        for row in rows:
            metrics = self.latest[key] = self.latest.get(key, {}) | {"step": row["step"], **row["metrics"]}
            if row["time"] < self.began:
                self.before[key] = int(metrics.get("tokens", 0))
            elif "val/loss" in row["metrics"]:
                self.evaluated.add(key)
        return self.latest.get(key, {})

    def _title(self, key: str) -> str:
        run = self.runs[key]
        return f"[{self.number[key]:>2}/{len(self.runs)}] {run.arm} seed {run.seed}"

    def events(self) -> list[str]:
        """What has happened since the last call, in words."""
        lines = []
        for key, folder in self.folders.items():
            new, self.heard[key] = folder.events(self.heard[key])
            lines += [f"{self._title(key)}: {line}" for line in new if line.split(":")[0] not in STATES]  # has its own
        return lines

    def finish(self, key: str) -> str:
        """The line that stays on the screen when a run is over."""
        self.done.add(key)
        status = self.folders[key].status
        if status.state != "FINISHED":
            file = self.folders[key].error_file
            more = f" (see {file})" if file.exists() else ""
            return f"{self._title(key)}: {status.state}: {status.reason}{more}"
        latest = self._read(key)
        return (
            f"{self._title(key)}: val/loss {latest['final/val_loss']:.4f} nats, "
            f"{latest['final/tokens_per_s']:,.0f} tokens/s, {duration(status.ended - status.resumed)}"
        )

    def lines(self) -> list[str]:
        """One line for each run in hand, and one for the whole."""
        lines, left, gained, judged = [], 0, 0, bool(self.done)
        for key, run in self.runs.items():
            train = run.recipe.train
            status = self.folders[key].status
            tokens = train.num_tokens if key in self.done else 0
            if key not in self.done and status.state == "RUNNING" and status.resumed >= self.began - 1:
                latest = self._read(key)
                tokens = int(latest.get("tokens", 0))
                judged |= key in self.evaluated
                if latest:
                    lines.append(
                        f"{self._title(key)}: step {int(latest['step'])}/{train.num_steps}, "
                        f"loss {latest['train/loss']:.4f}, {latest['throughput/tokens_per_s']:,.0f} tokens/s"
                    )
            left += train.num_tokens - tokens
            gained += tokens - self.before.get(key, 0) if tokens else 0
        elapsed = time.time() - self.began
        # Before the first evaluation, start-up is most of what has gone by.
        ahead = f", {duration(elapsed * left / gained)} left" if judged and gained > 0 else ""
        return [*lines, f"{len(self.done)} of {len(self.runs)} runs done, {duration(elapsed)} gone{ahead}"]
