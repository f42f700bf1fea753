"""What standard output cannot show or take: real processes, each with a real terminal's encoding, pipe or disk."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

EXPERIMENT = "experiments/micro_theta.yaml"
PRINTS = """
import sys
from pathlib import Path
from runners.streams import unfailing
with unfailing() as streams:
    for i in range(int(sys.argv[1])):
        print(sys.argv[2])
    Path("done").touch()
    code = streams.exit_code(int(sys.argv[3]))
sys.exit(code)
"""
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # as a system without UTF-8 has it


def shell(
    folder: Path, words: list[object], behind: str = "", *descriptors: int, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    line = f"set -o pipefail; {shlex.join([sys.executable, *map(str, words)])} {behind}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=300,
        pass_fds=descriptors,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"10000 -> 100 | a +- b ... 5 x 10 2 e \\u039b\n"),
        ("latin-1", b"10000 -> 100 \xb7 a \xb1 b ... 5 \xd7 10 \xb2 \xe9 \\u039b\n"),
        ("cp1252", b"10000 -> 100 \xb7 a \xb1 b \x85 5 \xd7 10 \xb2 \xe9 \\u039b\n"),
        ("utf-8", "10000 → 100 · a ± b … 5 × 10 ² é Λ\n".encode()),
        ("", "10000 → 100 · a ± b … 5 × 10 ² é Λ\n".encode()),
    ],
)
def test_what_an_encoding_lacks_has_a_stand_in(tmp_path, encoding, shown):
    text = "10000 → 100 · a ± b … 5 × 10 ² é Λ"
    done = shell(tmp_path, ["-c", PRINTS, 1, text, 0], PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, b"")


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9.yaml")  # as from a Latin-1 file system: a lone surrogate, which UTF-8 has not
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, "1", name, "0"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9.yaml\n")


FULL = b"error: standard output: No space left on device; what was printed is lost, no file is\n"


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize(
    ("into", "code", "ends", "says"),
    [
        (">&$GONE", 0, 141, b""),
        (">&$GONE", 2, 2, b""),
        (">&$GONE 2>&1", 0, 141, b""),
        (">/dev/full", 0, 1, FULL),
        (">/dev/full", 130, 130, FULL),
        (">/dev/full 2>&1", 0, 1, b""),
        (">&-", 0, 0, b""),
        (">&- 2>&-", 0, 0, b""),
    ],
)
def test_the_work_is_done_whoever_reads(tmp_path, lines, into, code, ends, says):
    reader, gone = os.pipe()
    os.close(reader)
    try:
        done = shell(tmp_path, ["-c", PRINTS, lines, "x" * 20, code], into.replace("$GONE", str(gone)), gone)
    finally:
        os.close(gone)
    assert (tmp_path / "done").exists()
    assert (done.returncode, done.stderr) == (ends, says)


@pytest.mark.parametrize("verb", [["--help"], ["blocks"], ["plna"]])
def test_the_first_line_is_all_that_is_read(verb):
    done = shell(ROOT, ["-m", "runners", *verb], "| head -n 0")
    assert done.returncode in ((2,) if verb == ["plna"] else (0, 141))
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.slow
def test_a_sweep_ends_in_its_verdict_under_any_locale_and_on_a_full_disk(project):
    """Both stages of a command: what is trained is trained, and the report has every letter of the question."""
    file = project / EXPERIMENT
    file.write_text(file.read_text(encoding="utf-8").replace("Does theta", "Θ → θ, does it"), encoding="utf-8")
    run = ["-m", "runners", "run", EXPERIMENT, "--seeds", "1", "--device", "cpu"]
    full = shell(project, run, ">/dev/full", **ASCII)
    assert (full.returncode, full.stderr) == (1, FULL)
    report = (project / "reports/micro-theta-micro/report.html").read_text(encoding="utf-8")
    assert "Θ → θ, does it" in report
    done = shell(project, run, **ASCII)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"theta_100" in done.stdout
    assert done.stdout.isascii()
