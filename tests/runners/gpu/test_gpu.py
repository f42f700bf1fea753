"""Manifests, the table of steps and its predictions, and what is refused before anything is done."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from runners.bench.measure import student_t
from runners.cli import main
from runners.execution.slots import Slots
from runners.gpu import manifest, pack
from runners.gpu.parts import PARTS, data_of, predicted_minutes, steps
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
    assert "a folder without results.json" in capsys.readouterr().err
    assert main(["gpu-import", str(tmp_path)]) == 2
    assert "a folder that `make gpu` wrote" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_than_can_be_carried_is_refused_and_leaves_nothing(at_root, tmp_path, monkeypatch):
    """The limit alone is another; text and wheels are left out, which the rehearsal packs."""
    monkeypatch.setattr(pack, "LIMIT", 1000)
    monkeypatch.setattr(pack, "_commit", lambda: "c")
    monkeypatch.setattr(pack, "_wheels", lambda folder, pythons, say: folder.mkdir())
    monkeypatch.setattr(pack, "data_of", lambda steps: [])
    with pytest.raises(pack.ConfigError, match="a pack of .* MiB: source"):
        pack.pack(tmp_path / "pack", "tiny", ["3.12"], tmp_path, print)
    assert list(tmp_path.iterdir()) == []
