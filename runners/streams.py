"""Standard output and error that stop no work: what they cannot show is replaced, what nobody takes is dropped."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_STAND_INS = {"·": "|", "→": "->", "←": "<-", "–": "-", "—": "-", "…": "...", "±": "+-", "×": "x", "“": '"', "”": '"'}
_ERRORS = "llama_ablations.stand_in"


class Stream:
    """A text stream that takes everything; ``failure`` is why it stopped passing it on, if it did."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """As the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """From now on nothing is written: what the stream still holds would fail again when the process ends."""
        self.failure = self.failure or error
        with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


class Streams:
    """Both streams of a command."""

    def __init__(self, out: Stream, err: Stream) -> None:
        self.out, self.err = out, err

    def exit_code(self, code: int) -> int:
        """``code``, unless what was printed did not arrive: 141 where the reader left, as of other tools, else 1."""
        self.out.flush()
        failure = self.out.failure
        if isinstance(failure, BrokenPipeError):
            return code or 128 + signal.SIGPIPE
        if failure:
            print(f"error: standard output: {failure.strerror}; what was printed is lost, no file is", file=self.err)
        self.err.flush()
        return code or (1 if failure else 0)


@contextlib.contextmanager
def unfailing() -> Iterator[Streams]:
    """``sys.stdout`` and ``sys.stderr`` are of that kind in the body."""
    codecs.register_error(_ERRORS, _stand_in)
    before = sys.stdout, sys.stderr
    # A process that was started without them has None; the next file that it opens would take their place.
    out, err = (stream if stream is not None else Path(os.devnull).open("w") for stream in before)  # noqa: SIM115
    streams = Streams(Stream(out), Stream(err))
    sys.stdout, sys.stderr = streams.out, streams.err
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks, in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(char: str) -> str:
    plain = _STAND_INS.get(char) or unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return plain or char.encode("ascii", "backslashreplace").decode()
