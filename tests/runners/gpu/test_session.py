"""A session is killed outright, interrupted twice, started twice, or goes on in a folder that is not its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_variants.errors import ConfigError
from runners.gpu import manifest
from runners.gpu.session import RESULTS, _drop_damaged, check_out
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

SESSION = f"""
import signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from llama_variants.errors import ConfigError
from runners.execution.slots import Slots
from runners.gpu.parts import Step
from runners.gpu.session import Session, check_out
from runners.runs.signals import Stopped, StopRequest
out, stop = Path("results"), StopRequest()
stop.install(signal.SIGINT)
try:
    check_out(out, "tiny")
    slots = Slots(("cpu",), 1)
    session = Session(out=out, cache=Path("cache"), base="tiny", slots=slots, minutes=None, stop=stop, say=print)
    print(session.carry_out([Step(name="peers", part="bench", words=("work",), minutes=1.0)]))
except (ConfigError, Stopped) as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
WORK = """
import os, pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("pid").write_text(str(os.getpid()))
while not pathlib.Path("enough").exists():
    time.sleep(0.05)
pathlib.Path("reports/bench/peers-new.json").write_text('{"rows": []}')
"""


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder in which a step works until it is told that it is enough; with a record of the bench from before."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "reports/bench").mkdir(parents=True)
    (tmp_path / "reports/bench/peers-old.json").write_text('{"rows": []}')
    return tmp_path


def begin(place: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", SESSION]
    options = {"cwd": place, "env": clean_environment(), "text": True}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_session_that_was_killed_goes_on_when_its_step_is_over(place):
    killed = begin(place)
    wait_for((place / "pid").exists, killed)
    killed.kill()
    killed.communicate()
    second = begin(place)  # the step is still at work: on a card it would spoil what this one measures
    assert "still at work in this folder" in second.communicate(timeout=60)[0]
    assert second.returncode == 1
    pid = int((place / "pid").read_text())
    (place / "enough").touch()
    deadline = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    third = begin(place)
    said = third.communicate(timeout=60)[0]
    assert "([], [])" in said
    results = place / "results"
    assert manifest.faults(results, RESULTS) == []
    assert [file.name for file in (results / "bench").iterdir()] == ["peers-new.json"]  # and not what is older
    assert sorted(file.name for file in (results / "logs").iterdir()) == ["peers.0.log", "peers.1.log"]


def test_a_second_interrupt_leaves_nothing_behind(place):
    child = begin(place)
    wait_for((place / "pid").exists, child)
    child.send_signal(signal.SIGINT)  # the step does not listen
    time.sleep(1.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert "Stopped" in child.communicate(timeout=30)[0]
    assert not alive(int((place / "pid").read_text()))
    assert manifest.faults(place / "results", RESULTS) == []


def test_results_on_another_base_are_not_mixed_with_these(tmp_path):
    manifest.write(tmp_path, RESULTS, {"base": "tiny"})
    check_out(tmp_path, "tiny")
    check_out(tmp_path / "new", None)
    with pytest.raises(ConfigError, match="made with: base tiny"):
        check_out(tmp_path, None)
    (tmp_path / RESULTS).write_text("{")
    with pytest.raises(ConfigError, match="JSONDecodeError"):
        check_out(tmp_path, "tiny")


def test_what_did_not_come_over_whole_is_dropped_and_a_run_as_a_whole(tmp_path):
    whole = {"runs/a/metrics.jsonl": "1", "runs/a/status.json": "{}", "runs/b/metrics.jsonl": "1", "steps/x.json": "{}"}
    for name, text in whole.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    manifest.write(tmp_path, RESULTS, {"base": None})
    assert _drop_damaged(tmp_path) == []
    (tmp_path / "runs/a/metrics.jsonl").write_text("")
    (tmp_path / "steps/x.json").write_text("")
    shutil.copytree(tmp_path / "runs/b", tmp_path / "runs/c")  # which nobody listed
    assert _drop_damaged(tmp_path) == ["runs/a/metrics.jsonl", "steps/x.json", "runs/a", "runs/c"]
    left = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()]
    assert sorted(left) == ["results.json", "runs/b/metrics.jsonl"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "runs/../../secret"])
def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path, name):
    (tmp_path / RESULTS).write_text(json.dumps({"files": {name: "0" * 64}}))
    with pytest.raises(ValueError, match="is no file in this folder"):
        manifest.faults(tmp_path, RESULTS)
