"""How source is written: dataclasses by keyword, and files that can be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("llama_variants", "runners", "analysis")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MOST_LINES = 400
MOST_BY_PLACE = 3  # fields of a dataclass that may be given without their names

Key = tuple[str, str]  # a module, and a class of it


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def large(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, bool]]:
    """Dataclasses with more fields of their own than may go by place; and whether they take keywords only."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        fields = [part for part in fields if not ast.unparse(part.annotation).startswith("ClassVar")]
        for decorator in node.decorator_list:
            call = ast.unparse(decorator)
            if call.split("(")[0] in ("dataclass", "dataclasses.dataclass") and len(fields) > MOST_BY_PLACE:
                yield node, "kw_only=True" in call


LARGE = {(module(path), node.name) for path, tree in TREES.items() for node, _ in large(tree)}


def by_place(path: Path, tree: ast.Module, known: set[Key]) -> list[str]:
    """Where a class of ``known``, that the file defines or imports by name, is made from positional arguments."""
    names = {name for home, name in known if home == module(path)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {one.asname or one.name for one in node.names if is_known(node.module or "", one.name, known)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    found = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (module(path), node.name) in known:
            inside = [call for call in ast.walk(node) if isinstance(call, ast.Call) and call.args]
            found += [call for call in inside if ast.unparse(call.func) == "cls"]
    return [f"{path.relative_to(ROOT)}:{call.lineno} {ast.unparse(call.func)}" for call in found]


def is_known(home: str, name: str, known: set[Key]) -> bool:
    """Whether a name that is imported from ``home`` is a class of ``known``, through a package that hands it on too."""
    return any(name == other and (place == home or place.startswith(f"{home}.")) for place, other in known)


def test_dataclasses_of_more_than_three_fields_take_keywords_only():
    assert len(LARGE) > 30
    found = {path: large(tree) for path, tree in TREES.items()}
    assert [(module(path), node.name) for path, all_of in found.items() for node, named in all_of if not named] == []


def test_such_a_class_is_made_by_keywords_in_the_packages_and_in_tests():
    tests = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert [place for path, tree in (TREES | tests).items() for place in by_place(path, tree, LARGE)] == []


def test_no_file_is_longer_than_400_lines():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_these_checks_see_what_they_should():
    fields = "".join(f"    field_{i}: int\n" for i in range(4))
    source = f"@dataclass(frozen=True)\nclass Wide:\n{fields}\nWide(1, 2)\nWide(field_0=1)\n"
    path = ROOT / "runners/wide.py"
    assert [(node.name, by_keyword) for node, by_keyword in large(ast.parse(source))] == [("Wide", False)]
    assert by_place(path, ast.parse(source), {("runners.wide", "Wide")}) == ["runners/wide.py:8 Wide"]
    imported = "from llama_variants import Cost as C\nC(1, 2)\n"
    assert by_place(path, ast.parse(imported), {("llama_variants.registry", "Cost")}) == ["runners/wide.py:2 C"]


COMPONENTS = (
    "llama_variants/blocks",
    "runners/training/optimizers",
    "runners/training/schedules",
    "runners/evaluation",
)


@pytest.mark.parametrize("folder", COMPONENTS)
def test_files_of_components_hold_definitions_alone(folder):
    """Of these files a run's fingerprint takes single definitions: what else stood at the top level would not count."""
    allowed = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign
    for file in sorted((ROOT / folder).glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
            assert isinstance(node, allowed) or text or types, f"{file}:{node.lineno}"
