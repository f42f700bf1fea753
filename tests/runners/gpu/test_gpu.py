"""Manifests, the table of steps and its predictions, and what is refused before anything is done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from runners.bench.measure import student_t
from runners.cli import main
from runners.execution.slots import Slots
from runners.gpu import bare, enter, manifest, pack
from runners.gpu.parts import PARTS, Step, data_of, predicted_minutes, steps
from runners.gpu.session import Session, check_out
from runners.runs.signals import StopRequest
from tests.conftest import ROOT


@given(st.integers(1, 400))
def test_student_t_is_scipy_s(df):
    assert student_t(df) == pytest.approx(float(stats.t.isf(0.025, df)), rel=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("carried")
    (place / "a/b").mkdir(parents=True)
    (place / "a/b/one").write_bytes(bytes(range(256)))
    (place / "two").write_text("two")
    (place / "empty").touch()
    manifest.write(place, "pack.json", {"commit": "c"})
    return place


@given(place=st.integers(0, 255), bit=st.integers(0, 7))
def test_any_bit_that_flips_is_found(folder, place, bit):
    assert manifest.faults(folder, "pack.json") == []
    whole = (folder / "a/b/one").read_bytes()
    flipped = bytearray(whole)
    flipped[place] ^= 1 << bit
    (folder / "a/b/one").write_bytes(bytes(flipped))
    found = manifest.faults(folder, "pack.json")
    (folder / "a/b/one").write_bytes(whole)
    assert found == ["a/b/one is not what was written"]


def test_a_file_that_is_missing_is_found_and_a_folder_without_manifest_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/empty").unlink()
    assert manifest.faults(tmp_path / "copy", "pack.json") == ["empty is missing"]
    (tmp_path / "copy/pack.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pack\.json: KeyError"):
        manifest.faults(tmp_path / "copy", "pack.json")


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_parts_are_in_order_and_can_be_chosen(at_root):
    every = steps(None, "cuda:0")
    assert list(dict.fromkeys(step.part for step in every)) == [*PARTS]
    assert len({step.name for step in every}) == len(every)
    assert steps(None, "cuda:0", ["baseline", "tests"]) == [s for s in every if s.part in ("tests", "baseline")]
    assert len(data_of(every)) == 1  # what is carried serves both bases
    assert every[0].words[-2:] == ("cuda", "tests/cuda")


def test_a_run_that_steps_share_is_predicted_once(at_root, tmp_path, monkeypatch):
    every = [step for step in steps("tiny", "cpu", ["noise", "five"]) if step.runs]
    monkeypatch.chdir(tmp_path)  # where no run is done
    minutes, basis = predicted_minutes(every, Slots(("cpu",), 1), tmp_path)
    assert basis.startswith("a matrix product")
    flops = {run.key: run.recipe.train.num_tokens * run.recipe.flops_per_token for step in every for run in step.runs}
    rate = sum(flops.values()) / sum(minutes.values())
    own = {run.key for run in every[0].runs}
    assert minutes[every[0].name] * rate == pytest.approx(sum(flops[key] for key in own))
    fresh = {run.key for run in every[1].runs} - own
    assert minutes[every[1].name] * rate == pytest.approx(sum(flops[key] for key in fresh))


def test_what_cannot_be_is_refused_before_anything_is_done(at_root, tmp_path, capsys):
    assert main(["gpu", "--parts", "tests,bensh", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'bench'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["gpu", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert f"there is no {tmp_path}/results.json" in capsys.readouterr().err
    assert main(["gpu", "--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert f"there is no {tmp_path}/file/results.json" in capsys.readouterr().err
    assert main(["gpu-import", str(tmp_path)]) == 2
    assert "a folder that `make gpu` wrote" in capsys.readouterr().err
    assert main(["gpu-pack", "--out", str(tmp_path)]) == 2
    assert "a new folder, or an earlier pack" in capsys.readouterr().err
    assert main(["gpu-pack", "--out", str(tmp_path / "file")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def nothing_begins(monkeypatch):
    """A failure takes no hours: what should have been refused would train 135M on a processor."""
    monkeypatch.setattr(Session, "carry_out", lambda self, steps: pytest.fail("a session began"))


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "nine"])
def test_minutes_are_above_0(at_root, nothing_begins, tmp_path, capsys, minutes):
    with pytest.raises(SystemExit) as refused:
        main(["gpu", "--device", "cpu", f"--minutes={minutes}", "--out", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert f"'{minutes}' is no number of minutes above 0" in capsys.readouterr().err


def test_without_a_card_a_processor_takes_its_place_only_when_asked(
    at_root, nothing_begins, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["gpu", "--parts", "baseline", "--out", str(tmp_path / "out")]) == 2
    assert "PyTorch sees no card here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def session(folder, say, minutes=None):
    return Session(
        out=folder / "out",
        cache=folder / "cache",
        base="tiny",
        slots=Slots(("cpu",), 1),
        minutes=minutes,
        stop=StopRequest(),
        say=say,
    )


def test_a_session_that_was_killed_before_its_first_step_ended_goes_on_and_another_base_s_does_not(
    tmp_path, monkeypatch
):
    def killed(text):
        raise InterruptedError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptedError):
        session(tmp_path, killed).carry_out([])
    check_out(tmp_path / "out", "tiny")
    with pytest.raises(ValueError, match="received no base named; allowed: .* made with: base tiny"):
        check_out(tmp_path / "out", None)


def test_what_the_minutes_are_too_few_for_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = Step(name="short", part="bench", words=("platform",), minutes=0.5)
    long = Step(name="long", part="tests", words=("platform",), minutes=4.0)
    said: list[str] = []
    assert session(tmp_path, said.append, minutes=2).carry_out([short, long]) == ([], ["long"])
    assert "the minutes will be over in long; " in said[0]
    assert any(text.startswith("long: not begun: takes 4 min in one go, ") for text in said)
    said.clear()
    session(tmp_path, said.append, minutes=5).carry_out([short, long])
    assert "will be over" not in said[0]


@pytest.mark.parametrize(("device", "entered"), [("NVIDIA H200", 1), ("cpu-x86_64", 0)])
def test_a_rehearsal_replaces_no_record_of_the_bench(tmp_path, device, entered):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/peers.json").write_text("{}")
    manifest.write(tmp_path, "results.json", {"base": None, "pack": None, "environment": {"device": device}})
    assert len(enter.check(tmp_path, tmp_path / "runs").files) == entered


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A pack without source, whose wheels are none."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/requirements.txt").touch()
    manifest.write(tmp_path, "pack.json", {"commit": "c", "pythons": ["3.11"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_python_without_torch_is_refused_and_leaves_no_environment(packed):
    command = [sys.executable, "-S", "-m", "runners.gpu.bare"]  # -S: without installed packages
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "lacks torch, transformers, pip; name a Python that has them with PYTHON=" in done.stderr
    assert not (packed / ".venv").exists()


def test_another_python_gets_an_environment_of_its_own(packed, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    (packed / ".venv").mkdir()
    (packed / ".venv/.carried").write_text("/another/python")
    bare.main(["--minutes", "9"])
    assert started == [[".venv/bin/python", "-m", "runners", "gpu", "--minutes", "9"]]
    assert subprocess.run([".venv/bin/python", "-c", "import torch"], check=False).returncode == 0
    (packed / ".venv/kept").touch()
    bare.main([])
    assert (packed / ".venv/kept").exists()


def test_more_than_can_be_carried_is_refused_and_leaves_nothing(at_root, tmp_path, monkeypatch):
    """The limit alone is another; text and wheels are left out, which the rehearsal packs."""
    monkeypatch.setattr(pack, "LIMIT", 1000)
    monkeypatch.setattr(pack, "_commit", lambda: "c")
    monkeypatch.setattr(pack, "_wheels", lambda folder, pythons, say: folder.mkdir())
    monkeypatch.setattr(pack, "data_of", lambda steps: [])
    with pytest.raises(pack.ConfigError, match="a pack of .* MiB: source"):
        pack.pack(tmp_path / "pack", "tiny", ["3.12"], tmp_path, print)
    assert list(tmp_path.iterdir()) == []
