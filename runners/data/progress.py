"""What a build says of itself while it works: how far it is, and how fast."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
LINE_EVERY_S = 5.0
REDRAW_EVERY_S = 0.2


def silent(text: str) -> None:
    """Says nothing."""


class Progress:
    """One split on its way: a line every few seconds, or on a terminal one line that is drawn again."""

    def __init__(self, split: str, say: Say) -> None:
        self._split, self._say = split, say
        self._terminal = say is not silent and sys.stdout.isatty()
        self._began = self._said = time.monotonic()

    def at(self, *, documents: int, num_bytes: int, tokens: int, share: float | None) -> None:
        """What is done so far; ``share``: of the whole split (0 … 1), None where nobody knows how much there is."""
        now = time.monotonic()
        if now - self._said < (REDRAW_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        self._said = now
        rate = tokens / max(now - self._began, 1e-9)
        done = "" if share is None else f"{min(share, 1):.0%} done, "
        line = f"{self._split}: {done}{documents:,} documents, {num_bytes / 1e6:,.0f} MB, {tokens:,} tokens"
        self._put(f"{line}, {rate:,.0f} tokens/s")

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)

    def _put(self, line: str) -> None:
        if self._terminal:
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)
        else:
            self._say(line)
