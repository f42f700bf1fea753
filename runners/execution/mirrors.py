"""The mirrors of one command, and how MLflow is kept up to date beside a sweep without anything waiting for it."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from analysis.store import address
from llama_variants.errors import ConfigError
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.tracking import Mirror, checked, of_the_store, problem, within

EVERY_S = 5.0  # between two looks at the run folders
SELDOM_S = 60.0  # between two tries of a store that does not answer, at most
LEAVE_S, LEAVE_LOCAL_S = 5.0, 20.0  # that a sweep which is over waits for the last rows, where the store answers
LAST_S = 30.0  # for a single run, at its end
T = TypeVar("T")


class Mirrors:
    """The mirrors of one command: one for each stage of its plan, made when it is first asked for.

    Making one takes a dozen questions to the store, and a command both runs a plan and reports on it. Raises
    ConfigError for an address that can be none; whether the store answers shows later.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root = root
        self.uri = checked(uri or address.tracking_uri())
        self._made: dict[str, Mirror] = {}
        self._down = False
        self._found = importlib.util.find_spec("mlflow") is not None

    def absent(self) -> bool:
        """Whether MLflow is not installed; where it is not, a line on stderr says so, once in a command.

        Training does without it: the run folders hold everything, and are mirrored where it is.
        """
        if not (self._found or self._down):
            self._down = True
            text = "note: mlflow is not installed: runs are not mirrored (python -m runners report … does it later)"
            print(text, file=sys.stderr, flush=True)
        return not self._found

    def of(self, plan: Plan) -> Mirror:
        """The mirror of one stage."""
        name, made = plan.design().experiment, self._made
        if name not in made:
            made[name] = Mirror(plan, self.root, self.uri)
        return made[name]

    def forget(self) -> None:
        """Make new ones from now on: those there are failed, or another thread has them in hand."""
        self._made = {}

    def say_down(self, error: Exception) -> None:
        """Say on stderr, once in a command, that the store does not take anything, and why."""
        if not self._down:
            self._down = True
            text = f"note: {_fault(self.uri, error)}; runs are mirrored later (python -m runners report … does it)"
            print(text, file=sys.stderr, flush=True)

    def say_up(self) -> None:
        """Say that it does again, where it was said that it does not."""
        if self._down:
            self._down = False
            print(f"note: {address.shown(self.uri)} takes runs again", file=sys.stderr, flush=True)

    def mirror(self, plan: Plan, run: PlannedRun) -> None:
        """Mirror a single run, for at most ``LAST_S``; where that fails, a line says so."""
        if self.absent():
            return
        try:
            within(LAST_S, lambda: self.of(plan).sync(run))
        except Exception as error:
            self.say_down(error)

    def publish(self, plan: Plan, markdown: str, files: Iterable[Path]) -> None:
        """Show a report in the store's UI; one that does not take it keeps nobody from having the report."""
        try:
            self.of(plan).publish(markdown, files)
        except Exception as error:
            print(f"note: the report is not in MLflow: {_fault(self.uri, error)}", file=sys.stderr, flush=True)

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to a question that these mirrors are needed for.

        Where a server does not answer, mlflow.db takes its place, mirrored from the same run folders: it has the same
        answer. Raises ConfigError where that is the store in use, and does not answer either.
        """
        try:
            return question()
        except Exception as error:
            if not of_the_store(error):
                raise
            if address.database(self.uri):
                allowed = "a database that can be read and written, or none: it is made again from the run folders"
                raise ConfigError([problem(f"{self.uri}: {_cause(error)}", allowed)]) from None
            text = f"note: {_fault(self.uri, error)}; reported from {address.LOCAL}, mirrored from the same runs"
            print(text, file=sys.stderr, flush=True)
        self.uri = checked(address.LOCAL)
        self.forget()
        return self.ask(question)


class Mirroring:
    """Mirrors runs beside the sweep that carries them out.

    A context, left within ``LEAVE_S``; within ``LEAVE_LOCAL_S`` where the store is a file.

    A thread of its own asks the store, and ends with the process. So whatever the store does, a sweep neither waits for
    it nor fails by it, and a line says once that it does not answer. What it did not take is in the run folders.
    """

    def __init__(self, mirrors: Mirrors, plan: Plan, runs: Sequence[PlannedRun]) -> None:
        self.mirrors, self.plan, self.runs = mirrors, plan, runs
        self._leaving = threading.Event()
        self._fails = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> None:
        if not self.mirrors.absent():
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        if self._thread.ident is None:  # there was nothing to start it for
            return
        try:
            patience = LEAVE_LOCAL_S if address.database(self.mirrors.uri) else LEAVE_S
            self._thread.join(0 if self._fails else patience)
        finally:
            if self._thread.is_alive():
                self.mirrors.forget()

    def _work(self) -> None:
        pause, last = 0.0, False
        while not last:
            last = self._leaving.wait(pause)  # once more, then, for what was written meanwhile
            try:
                mirror = self.mirrors.of(self.plan)
                for run in self.runs:
                    mirror.sync(run)
            except Exception as error:
                self._fails, pause = True, min(SELDOM_S, 2 * max(pause, EVERY_S))
                self.mirrors.say_down(error)
                self.mirrors.forget()  # a run may have been deleted in the UI under it
            else:
                self._fails, pause = False, EVERY_S
                self.mirrors.say_up()


def _fault(uri: str, error: Exception) -> str:
    """What is wrong with the store, in one line."""
    if isinstance(error, ConfigError):
        return "; ".join(map(str, error.problems))
    return f"tracking store {address.shown(uri)} does not answer ({_cause(error)})"


def _cause(error: BaseException) -> str:
    """What is at the bottom of it, in one line."""
    said = type(error).__name__
    below: BaseException | None = error
    while below:
        said = (str(below).strip().splitlines() or [said])[0][:200]
        below = below.__cause__ or below.__context__
    return said
