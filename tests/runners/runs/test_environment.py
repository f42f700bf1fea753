"""What is recorded of a run's making, in a repository of its own."""

from __future__ import annotations

import subprocess

import pytest
import torch

from runners.runs import environment as provenance
from runners.runs.environment import environment, uncommitted


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository whose package lies one folder down, as ours does."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    (tmp_path / "package").mkdir()
    (tmp_path / "package/loop.py").write_text("lr = 1\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "HERE", tmp_path / "package")
    for function in (provenance._git_state, provenance.uncommitted):
        function.cache_clear()
    yield tmp_path
    for function in (provenance._git_state, provenance.uncommitted):
        function.cache_clear()


def test_a_clean_tree(checkout):
    assert uncommitted() == ""
    record = environment(torch.device("cpu"))
    assert record["dirty"] == "false"
    assert len(record["commit"]) == 40
    assert record["torch"] == torch.__version__
    assert {"processor", "cores", "memory_bytes", "host", "pid", "deterministic", "OMP_NUM_THREADS"} <= record.keys()
    assert all(isinstance(value, str) for value in record.values())


def test_changes_that_were_not_committed_make_a_patch_that_applies(checkout):
    (checkout / "package/loop.py").write_text("lr = 2\n")
    (checkout / "block.py").write_text("new = True\n")
    (checkout / "data.csv").write_text("1\n")  # no source
    patch = uncommitted()
    assert "-lr = 1\n+lr = 2" in patch
    assert "data.csv" not in patch
    assert environment(torch.device("cpu"))["dirty"] == "true"
    subprocess.run(["git", "stash", "-q", "-u"], cwd=checkout, check=True)
    subprocess.run(["git", "apply"], cwd=checkout, input=patch, text=True, check=True)
    assert (checkout / "package/loop.py").read_text() == "lr = 2\n"
    assert (checkout / "block.py").read_text() == "new = True\n"


def test_a_huge_patch_is_cut_off_and_says_so(checkout):
    (checkout / "package/loop.py").write_text("lr = 2\n" * 200_000)
    assert uncommitted().endswith(" characters]\n")
    assert len(uncommitted()) < 1_000_100


def test_outside_a_checkout_there_is_nothing_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    for function in (provenance._git_state, provenance.uncommitted):
        function.cache_clear()
    assert uncommitted() == ""
    assert "commit" not in environment(torch.device("cpu"))
    for function in (provenance._git_state, provenance.uncommitted):
        function.cache_clear()
