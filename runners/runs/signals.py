"""Stopping on a signal without losing a step."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

AGAIN_S = 1.0  # a terminal and a launcher may both pass on the same keystroke; that is one signal


class Stopped(BaseException):
    """A signal has come, ``signum``; or it was asked for beforehand, 0. Nothing but a command's end should catch it."""

    def __init__(self, signum: int, note: str = "") -> None:
        super().__init__(f"stopped {f'by {signal.Signals(signum).name}' if signum else 'as asked'}{note}")
        self.signum = signum


class StopRequest:
    """What SIGTERM and SIGINT mean in this process.

    As a rule they raise :class:`Stopped` where the program stands. While ``deferring``, the first one is noted in
    ``signum``, and whoever loops there saves and leaves; a second one raises at once.

    Args:
        patient: a second one changes nothing. For a process whose parent decides when it is enough.
        says: what the first one prints.
    """

    def __init__(self, patient: bool = False, says: str = "") -> None:
        self.signum: int | None = None
        self.deferring = False
        self._patient, self._says, self._since = patient, says, 0.0

    def install(self, *signals: int) -> None:
        """Take over these signals of the process."""
        for signum in signals:
            if (
                signal.getsignal(signum) is not signal.SIG_IGN or signum != signal.SIGHUP
            ):  # nohup ignores it, and means it
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: Any) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if self._says:
                os.write(2, f"{self._says}\n".encode())  # print() may be in the middle of something
            if not self.deferring:
                raise Stopped(signum)
        elif not self._patient and now - self._since > AGAIN_S:
            self._patient = True  # a third would only keep it from leaving in good order
            raise Stopped(signum)
