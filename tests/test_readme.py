"""The documents are true: their commands run, their examples give what they say, their tree exists."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis.store import schema
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments/README.md", ROOT / "CHANGELOG.md"]


def copy_tracked(folder: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)  # with its time: make must not think the environment old


CODES = blocks(README, "python")


@pytest.mark.slow  # one of them needs the published weights
@pytest.mark.parametrize("code", CODES, ids=range(len(CODES)))
def test_python_examples_print_what_stands_below_them(code):
    expected = README.split(code)[1].split("```\n")[2]
    if "cache/files" in code:
        subprocess.run([sys.executable, "-m", "runners", "weights"], cwd=ROOT, check=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == expected


def test_every_public_class_has_an_example():
    import llama_variants

    named = set(re.findall(r"\w+", " ".join(CODES)))
    assert set(llama_variants.__all__) - named == {"ConfigError"}


def test_one_liners_and_the_summary_print_what_they_should():
    lines = [line for block in blocks(README) for line in block.splitlines() if line.startswith(".venv/bin/python -c ")]
    outputs = [
        subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for line in lines
    ]
    tree, pattern, shape = outputs
    assert "(0-29): 30 x LlamaDecoderLayer(" in tree
    assert pattern == "nope\n"
    assert shape == "torch.Size([1, 8, 64])\n"
    (example,) = [block for block in blocks(README) if block.startswith("$ .venv/bin/python -m runners model")]
    command, _, expected = example.partition("\n")
    done = subprocess.run(["bash", "-c", command[2:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == expected


@pytest.mark.parametrize("document", documents(), ids=lambda file: file.name)
def test_paths_that_are_named_exist(document):
    named = set(
        re.findall(r"`((?:experiments|runners|analysis|llama_variants|tests|base)/[\w./-]*)`", document.read_text())
    )
    made_by_the_reader = {"experiments/mine.yaml", "experiments/LOG.md"}
    for path in named - made_by_the_reader:
        assert (ROOT / path).exists() or (ROOT / "experiments" / path).exists(), path


def test_tree_is_the_tree():
    (tree,) = [block for block in blocks(README) if block.startswith("Makefile")]
    folder, named = ROOT, set()
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            place = folder / name
        else:
            place = folder = ROOT / name
        assert place.exists(), place
        named.add(place.relative_to(ROOT).parts[0])
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    assert folders <= named


def test_commands_exist():
    commands = [line.split("#")[0].strip() for block in blocks(README) for line in block.splitlines()]
    targets = {command.split()[1] for command in commands if command.startswith("make ")}
    assert {"demo", "plan", "ablation", "ui"} <= targets
    targets |= set(re.findall(r"`make ([a-z-]+)", README))
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (target, done.stderr)


def test_the_six_line_experiment_plans(tmp_path):
    """`make plan EXP=…` with the README's own YAML, as a newcomer would type it."""
    (yaml,) = blocks(README, "yaml")
    assert len(yaml.strip().splitlines()) == 6
    (tmp_path / "mine.yaml").write_text(yaml)
    command = ["make", "plan", f"EXP={tmp_path}/mine.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "attention.num_key_value_heads 2 → 1" in done.stdout


@pytest.mark.slow
def test_a_newcomer_s_commands(tmp_path):
    """README's own experiment, from its YAML to its verdict in the MLflow UI, in a copy of what git tracks.

    One seed an arm (the environment's SEEDS=1), a sixth of the steps and a corpus that may be there already, which is
    all that departs from what a newcomer types; CI types `make demo` as it is.
    """
    copy_tracked(tmp_path)
    base = tmp_path / "experiments/base/tiny.yaml"
    base.write_text(base.read_text().replace("num_steps: 1200", "num_steps: 200"))
    (ROOT / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache").symlink_to(ROOT / "cache")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "experiments/mine.yaml").write_text(blocks(README, "yaml")[0])
    (commands,) = [block.splitlines() for block in blocks(README) if block.startswith("make plan")]
    commands = [command.split("#")[0].strip() for command in commands]
    assert commands[-1] == "make ui"
    environment = clean_environment() | {"SEEDS": "1"}
    for command in commands[:-1]:
        done = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("mqa "))
    assert "screen" in row
    for line in done.stdout.splitlines():
        if line.startswith(("report:", "markdown:", "table:")):
            assert (tmp_path / line.split()[1]).stat().st_size > 0

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    server = subprocess.Popen(
        ["make", "ui", f"PORT={port}"], cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    assert answer.status == 200
                break
            except urllib.error.URLError:
                assert time.monotonic() - began < 60, "make ui does not answer"
                time.sleep(0.2)
        print(f"make ui answered after {time.monotonic() - began:.1f} s")
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name("mine-tiny")
        runs = client.search_runs([experiment.experiment_id])
        (report,) = [run for run in runs if schema.TAG_REPORT in run.data.tags]
        trained = [run for run in runs if run is not report]
        assert sorted(run.data.tags[schema.TAG_ARM] for run in trained) == ["control", "mqa", "nope", "twin"]
        assert "| mqa |" in experiment.tags["mlflow.note.content"]
        assert "| mqa |" in report.data.tags["mlflow.note.content"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_schema_examples_plan(tmp_path):
    from runners.planning.plan import load_plan

    whole, layers, _ = blocks((ROOT / "experiments/README.md").read_text(), "yaml")
    (tmp_path / "example.yaml").write_text(whole)
    plan = load_plan(tmp_path / "example.yaml")
    assert [arm.name for arm in plan.arms if arm.role == "variant"] == ["mha", "mha/params", "mqa", "mqa/params"]
    assert [len(arm.runs) for arm in plan.arms if arm.role == "variant"] == [5, 5, 8, 8]
    (tmp_path / "layers.yaml").write_text(whole.split("match:")[0] + layers)
    arms = {arm.name: arm.recipe.model for arm in load_plan(tmp_path / "layers.yaml").arms}
    assert [arms["nope_every_4"].layer(i).rotary.type for i in (2, 3, 4, 7)] == ["rope", "nope", "rope", "nope"]
    windows = [arms["local_global"].layer(i).attention.window(arms["local_global"]) for i in range(4)]
    assert windows == [256, 256, 256, None]
    assert [arms["wide_ends"].layer(i).mlp.width(576) for i in (0, 1, 29)] == [2304, 1536, 2304]


def test_the_example_of_own_text_is_read_as_it_says(tmp_path, monkeypatch):
    from runners.data.config import FilesSource
    from runners.data.formats import SUFFIXES
    from runners.planning.bases import load_data

    page = (ROOT / "experiments/README.md").read_text()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text/a").mkdir(parents=True)
    rows = '{"text": "one"}\n'
    (tmp_path / "text/a/b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "more.csv").write_text("text\none\n")
    pd.DataFrame({"text": ["two"]}).to_parquet("held-out.parquet")
    section = blocks(page, "yaml")[-1]
    (tmp_path / "own.yaml").write_text(textwrap.dedent(section.removeprefix("data:\n")))
    source = load_data(tmp_path / "own.yaml").source
    assert isinstance(source, FilesSource)
    assert source == FilesSource(type="files", train=source.train, validation=source.validation)  # the defaults
    assert source.taken("train") == f"1 of jsonl, gzip ({tmp_path}/text/a/b.jsonl.gz); 1 of csv (more.csv)"
    assert source.taken("validation") == "1 of parquet (held-out.parquet)"
    table = page.partition("| format | suffix")[2].partition("\n\n")[0]
    for suffix in re.findall(r"`(\.\w+)`", table):
        assert any(suffix in suffixes.split() for suffixes in SUFFIXES.values()), suffix
    named = {name for name in SUFFIXES if f"| `{name}`" in table or f", `{name}`" in table}
    assert named == SUFFIXES.keys()


def test_promises_name_tests_that_exist():
    """The table of CONTRIBUTING.md: `file.py::test`, and `test` alone for one more of the same file."""
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")][2:]
    named = 0
    for row in rows:
        file = ""
        for reference in re.findall(r"`((?:test_\w+\.py)?(?:::)?(?:test_\w+)?)`", row.split("|")[2]):
            path, _, name = reference.rpartition("::") if "::" in reference else ("", "", reference)
            if reference.endswith(".py"):
                path, name = reference, ""
            file = path or file
            (found,) = (ROOT / "tests").rglob(file)
            text = found.read_text()
            assert not name or f"def {name}(" in text, reference
            named += 1
    assert named > 25


def test_every_experiment_is_in_the_index():
    index = (ROOT / "experiments/README.md").read_text()
    for file in (ROOT / "experiments").rglob("*.yaml"):
        assert f"`{file.relative_to(ROOT / 'experiments')}`" in index


@pytest.mark.slow
def test_the_example_block_passes_the_suite_that_picks_it_up(tmp_path):
    """CONTRIBUTING's block, pasted where it says, in a copy of the project: the checks and the model's tests pass."""
    copy_tracked(tmp_path)
    if (ROOT / ".mypy_cache").exists():  # what mypy knows of the packages, which it needs most of its time for
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    block = textwrap.dedent(contributing.split("   ```python\n")[1].split("   ```\n")[0])
    target = tmp_path / "llama_variants/blocks/mlp.py"
    target.write_text(target.read_text() + "\n\n" + block)
    table = tmp_path / "llama_variants/blocks/README.md"
    assert "python -m runners blocks --markdown > llama_variants/blocks/README.md" in contributing
    blocks_page = [sys.executable, "-m", "runners", "blocks", "--markdown"]
    table.write_text(subprocess.run(blocks_page, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert "| `relu` | intermediate_size | down(relu(up(x))) | arXiv:1706.03762 |" in table.read_text()
    commands = (
        ["ruff", "check", "llama_variants"],
        ["ruff", "format", "--check", "llama_variants"],
        ["mypy"],
        ["pytest", "-m", "not slow", "-k", "relu or registry or summary", "tests/llama_variants"],
    )
    for module, *arguments in commands:
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 60  # among them all that go over the registry


def test_help_lists_every_target():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^  {target} ", done.stdout, flags=re.MULTILINE), target


def setup_in(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "setup", *(f"{key}={value}" for key, value in variables.items())]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_setup_says_that_python_is_too_old(tmp_path):
    old = tmp_path / "python-old"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 10, 4); exec(sys.argv[2])' \"$@\"\n"
    )
    old.chmod(0o755)
    done = setup_in(tmp_path, PYTHON=str(old))
    assert done.returncode != 0
    assert "Python 3.11 or later is needed, this is 3.10" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_setup_says_that_a_package_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = setup_in(tmp_path)
    assert done.returncode != 0
    assert "a pinned package could not be had" in done.stdout + done.stderr
    assert "No matching distribution found" in done.stderr
    assert not (tmp_path / ".venv/.ready").exists()
