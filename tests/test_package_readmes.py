"""Each package's README lists its files: all of them, no other, in the order of the layers, a few words each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("llama_variants", "runners", "analysis")


def listed(package: str) -> list[tuple[Path, str]]:
    """The rows of the README's tables: each file, relative to the package, and its description."""
    folder, rows = Path(), []
    for line in (ROOT / package / "README.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `([\w/]+)/`", line):
            folder = Path(heading[1])
        elif row := re.fullmatch(r"\| `([\w.]+)` \| (.+) \|", line):
            rows.append((folder / row[1], row[2]))
    return rows


def layers(container: str) -> dict[str, int]:
    """The modules of a package, each with its layer from the top; none where pyproject.toml has no layers for it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract.get("containers") == [container]:
            return {name: i for i, layer in enumerate(contract["layers"]) for name in layer.split(" | ")}
    return {}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_file_is_listed_once_and_is_there(package):
    files = [path for kind in ("*.py", "*.ipynb") for path in (ROOT / package).rglob(kind)]
    there = {path.relative_to(ROOT / package) for path in files if path.name != "__init__.py"}
    there = {path for path in there if ".ipynb_checkpoints" not in path.parts}
    named = [path for path, _ in listed(package)]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("package", PACKAGES)
def test_descriptions_have_three_to_seven_words(package):
    for path, text in listed(package):
        assert 3 <= len(text.split()) <= 7, (path, text)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_layer_comes_first(package):
    paths = [path for path, _ in listed(package)]
    for folder in dict.fromkeys(path.parent for path in paths):
        rank = layers(".".join((package, *folder.parts)))
        files = [path.stem for path in paths if path.parent == folder and path.stem in rank]
        assert files == sorted(files, key=rank.__getitem__)
    rank = layers(package)
    folders = [path.parts[0] for path in paths if len(path.parts) > 1 and path.parts[0] in rank]
    assert folders == sorted(folders, key=rank.__getitem__)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_names_the_readme(package):
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    (lines,) = re.findall(rf"^{package}/.*\n((?: .*\n)*)", tree, flags=re.MULTILINE)
    assert re.search(r"^  README\.md ", lines, flags=re.MULTILINE)
