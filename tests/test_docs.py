"""The pages of docs/: every file that they show is one that the program takes, and the commands do what they say."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama_variants.errors import check
from runners.cli import make_parser
from runners.data import DataConfig
from runners.planning import strict_yaml
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

PAGE = (ROOT / "docs/data.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
SOURCE = {"type": "packages", "train": ["a==1 sha256:" + "0" * 64], "validation": ["b==1 sha256:" + "0" * 64]}
TASK = {
    "type": "synthetic",
    "task": {"type": "copy", "alphabet": 3, "distance": 2, "length": 4},
    "train": 9,
    "validation": 9,
}


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.startswith(("source:", "tokenizer:"))])
def test_every_source_and_tokenizer_is_taken(block):
    part = strict_yaml.parse(block, "docs/data.md")
    kind = part.get("source", part.get("tokenizer"))["type"]
    numbers = {"type": "numbers", "vocab_size": 65}
    if "source" in part:
        part |= {"tokenizer": numbers if kind == "synthetic" else {"type": "bpe", "vocab_size": 300}}
    else:
        part |= {"source": TASK if kind == "numbers" else SOURCE}
    _, problems = check(DataConfig, part)
    assert problems == []


@pytest.fixture
def newcomer(tmp_path) -> Path:
    """A folder with texts as the page says, and the page's two files."""
    files = sorted(ROOT.glob("*/**/*.py"))
    texts = [path.read_text() for path in files if not {".venv", "tests"} & set(path.relative_to(ROOT).parts)]
    (tmp_path / "texts/train").mkdir(parents=True)
    for name, rows in (("train/a.jsonl.gz", texts[::2]), ("held-out.jsonl.gz", texts[1::2])):
        with gzip.open(tmp_path / "texts" / name, "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in rows)
    (tmp_path / "experiments/base").mkdir(parents=True)
    base, question = (block for block in BLOCKS if block.startswith("name:"))
    (tmp_path / "experiments/base/mine.yaml").write_text(base)
    (tmp_path / "experiments/question.yaml").write_text(question)
    return tmp_path


def runners(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "runners", *arguments]
    return subprocess.run(words, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_page_s_commands_go_from_text_to_a_plan(newcomer):
    looked = runners(newcomer, "data", "inspect", "mine")
    assert looked.returncode == 0, looked.stderr
    for words in ("train: tokens by domain: texts/train/a.jsonl.gz", "longest documents", "10 windows of the training"):
        assert words in looked.stdout
    planned = runners(newcomer, "plan", "experiments/question.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "mqa" in planned.stdout
    checked = runners(newcomer, "data", "verify", "mine")
    assert checked.stdout.endswith("every file is what was built\n")
    (shard,) = (newcomer / "cache/corpora").glob("*/train.bin")
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    flipped = runners(newcomer, "data", "verify", "mine")
    assert flipped.returncode == 1
    assert "train.bin is not what was built" in flipped.stderr
    trained = runners(newcomer, "run", "experiments/question.yaml", "--jobs", "1")
    assert trained.returncode == 1
    assert "train.bin is not what was built" in trained.stderr
    assert not list((newcomer / "runs").glob("*/status.json"))


@pytest.mark.slow
def test_overlap_names_its_passages_before_the_first_run_and_dedupe_helps(newcomer):
    held = gzip.decompress((newcomer / "texts/held-out.jsonl.gz").read_bytes()).decode().splitlines()
    with gzip.open(newcomer / "texts/train/b.jsonl.gz", "wt") as file:
        for line in held[:: len(held) // 12]:
            file.write(json.dumps({"text": "Copied: " + json.loads(line)["text"]}) + "\n")
    for arguments in (("data", "build", "mine"), ("run", "experiments/question.yaml", "--jobs", "1")):
        refused = runners(newcomer, *arguments)
        assert refused.returncode == 2, refused.stdout
        assert refused.stderr.count("texts/train/b.jsonl.gz, document") == 2
        assert "`dedupe: true` in data" in refused.stderr
    assert not list((newcomer / "runs").glob("*/status.json"))
    base = newcomer / "experiments/base/mine.yaml"
    base.write_text(base.read_text().replace("data:\n", "data:\n  dedupe: true\n"))
    built = runners(newcomer, "data", "build", "mine")
    assert built.returncode == 0, built.stderr
    assert "with passages of validation" in built.stdout


def test_every_command_of_the_page_on_evaluation_is_one_that_the_program_takes():
    text = (ROOT / "docs/evaluate.md").read_text()
    commands = re.findall(r"^\.venv/bin/python -m runners (.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 12
    for command in commands:
        make_parser().parse_args(shlex.split(command, comments=True))


def test_readme_names_every_page():
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme
