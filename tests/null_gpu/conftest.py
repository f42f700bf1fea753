"""Builds the null card, and keeps a process that runs cases on it. `make test-null-gpu` starts these tests."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree

import pytest
from filelock import FileLock

from tests.conftest import ROOT
from tests.null_gpu.cases import Case, write_text
from tests.null_gpu.checks import Answer

HERE = Path(__file__).parent
BUILD = ROOT / "build/null-gpu"
PYTHON = Path(os.environ.get("NULL_GPU_PYTHON", ROOT / ".venv-null-gpu/bin/python")).absolute()
PATIENCE_S = 400


def built() -> Path:
    """The library, made anew when a source is newer."""
    library, sources = BUILD / "libcuda.so.1", (HERE / "runtime.cpp", HERE / "succeeds.c")
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"):
        if library.exists() and library.stat().st_mtime > max(source.stat().st_mtime for source in sources):
            return library
        packages = subprocess.check_output(
            [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
        headers = [f"-isystem{packages}/nvidia/{part}/include" for part in ("cu13", "nccl")]
        common = ["-O1", "-fPIC", "-Wall"]
        subprocess.run(["gcc", *common, "-c", sources[1], "-o", BUILD / "succeeds.o"], check=True)
        linked = ["-shared", f"-Wl,-soname,{library.name}", "-o", library, sources[0], BUILD / "succeeds.o", "-ldl"]
        subprocess.run(["g++", *common, "-std=c++17", *headers, *linked], check=True)
    return library


def variables(library: Path, cards: int = 1) -> dict[str, str]:
    """Those by which a process has the null card."""
    return {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "TRITON_CACHE_DIR": str(library.parent / "triton"),
        "NULL_GPU_COUNT": str(cards),
        "OMP_NUM_THREADS": "1",
    }


def environment(library: Path, cards: int = 1) -> dict[str, str]:
    """Of a process of these tests."""
    # CUDA_TESTS: else tests/conftest.py, which the process imports too, hides every card.
    mine = variables(library, cards) | {"PYTHONPATH": str(ROOT), "CUDA_TESTS": "yes"}
    hidden = ("MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES")
    return {name: value for name, value in os.environ.items() if name not in hidden} | mine


class Card:
    """Runs cases, one after another in one process: loading torch and compiling take longer than a case."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.library = folder, built()
        folder.mkdir(exist_ok=True)
        write_text(folder)
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, case: Case) -> Answer:
        """What the run did."""
        if self._process is None or self._process.poll() is not None:
            with (self.folder / "errors.log").open("w") as errors:
                self._process = subprocess.Popen(
                    [PYTHON, "-m", "tests.null_gpu.process"],
                    cwd=self.folder,
                    env=environment(self.library),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            said = (self.folder / "errors.log").read_text()[-3000:]
            return {"state": "BROKEN", "reason": f"no answer within {PATIENCE_S} s, or it died", "error": said}
        answer: Answer = json.loads(line)
        return answer

    def together(self, case: Case, processes: int) -> list[Answer]:
        """What each of several processes did that torchrun started, each with a card of its own."""
        rmtree(self.folder / "runs", ignore_errors=True)  # what is finished would not be run again
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [PYTHON, *launch, "-m", "tests.null_gpu.process", json.dumps(asdict(case)), str(self.folder)],
            cwd=self.folder,
            env=environment(self.library, processes),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(processes)]

    def says(self, *words: str) -> str:
        """What ``python -m WORDS`` prints on the card, in a process of its own."""
        command, env = [PYTHON, "-m", *words], environment(self.library)
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="session")
def card() -> Iterator[Card]:
    if not PYTHON.exists():
        pytest.exit(f"{PYTHON} is not there; `make test-null-gpu` makes it", returncode=4)
    made = Card(BUILD / os.environ.get("PYTEST_XDIST_WORKER", "alone"))
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all runs that finished, and the bytes that a layer moves."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, [])]
    for stream, told in (pair for report in reports for pair in report.user_properties if pair[0].startswith("bytes")):
        terminalreporter.section(stream)
        terminalreporter.line(str(told))
    rows = [value for report in reports for name, value in report.user_properties if name == "row"]
    if not rows:
        return
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (BUILD / "table.md").write_text(table + "\n")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("a steady step on the null card")
    for line in lines:
        if line[0] != "---":
            terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
