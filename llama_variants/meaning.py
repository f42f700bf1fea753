"""What source code means: digests of syntax trees, which comments, docstrings, types and layout leave alone.

A run's losses depend on the code that it executes. Of a module that always runs the whole counts; of a class of this
project that a recipe chooses, out of many in its file, only the definitions that it needs: itself, what it names, and
what these name. Of somebody else's class all of its module counts, and every module that this one imports from its own
package or from beside it: nobody can say what such code does at its top level. Files are found by path, whether they
are imported yet or not, and read once in a process: what runs is what was there when it began.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

DIGITS = 8  # of a digest, in hexadecimal
OURS = ("llama_variants", "runners")  # packages whose components raise `semantics`; others are plugins

Definition = tuple[str, str]
"""A module's dotted name, and a name at its top level; "" for the whole module."""


def module_meaning(module: str) -> dict[str, str]:
    """``{module: digest}`` of a whole module, by its dotted name. Its package is imported; itself it need not be."""
    found = _read(module)
    assert found is not None, f"there is no source of {module}"
    return {module: found.digest("")}


def class_meaning(cls: Any, apart: Sequence[str] = (), skip: Sequence[str] = ()) -> dict[str, str]:
    """``{module:name: digest}`` of each definition that a class or function needs, its own first.

    Of one of this project: names are followed through its package. Of a module in ``apart`` only functions count, of
    one in ``skip`` nothing: these are looked after otherwise. Of any other: ``{module: digest}``.
    """
    home = str(cls.__module__)
    if home.partition(".")[0] not in OURS:
        return _plugin_meaning(home)
    seen: dict[str, str] = {}
    waiting: list[Definition] = [(home, cls.__qualname__.partition(".")[0])]
    while waiting:
        module, name = waiting.pop()
        part = f"{module}:{name}" if name else module
        if part in seen or module in skip or not (found := _read(module)):
            continue
        nodes = found.definitions.get(name, ())
        if name and (not nodes or (module in apart and not isinstance(nodes[0], ast.FunctionDef))):
            continue
        seen[part] = found.digest(name)
        near = home.partition(".")[0]
        waiting += [one for one in found.named(name) if one[0].partition(".")[0] == near] if name else []
    assert seen, f"{home} has no definition of {cls.__qualname__} at its top level"
    return seen


def _plugin_meaning(home: str) -> dict[str, str]:
    """Of the module ``home`` and of all that it imports from its own package or from beside it."""
    loaded = getattr(sys.modules.get(home), "__file__", None)
    if not loaded or not Path(loaded).is_file():
        return {}  # typed at a prompt
    package = home.split(".")
    folder = Path(loaded).resolve().parents[len(package) - (Path(loaded).name != "__init__.py")]
    installed = "site-packages" in folder.parts  # where everything lies beside everything else
    seen: dict[str, str] = {}
    waiting = [(home, Path(loaded))]
    while waiting:
        name, file = waiting.pop()
        if name in seen:
            continue
        module = _parsed(name, file)
        seen[name] = module.digest("")
        for other in module.imported():
            for parent in accumulate(other.split("."), "{}.{}".format):
                place = folder.joinpath(*parent.split("."))
                files = (place.with_suffix(".py"), place / "__init__.py")
                top, found = parent.partition(".")[0], next((one for one in files if one.is_file()), None)
                if found and top not in (*OURS, "analysis") and (top == package[0] or not installed):
                    waiting.append((parent, found))
    return seen


def digest(meaning: Mapping[str, str]) -> str:
    """One digest of several definitions together."""
    return hashlib.sha256(repr(sorted(meaning.items())).encode()).hexdigest()[:DIGITS]


class _Module:
    """One module's source: its tree, what it defines at the top level, and what its names stand for elsewhere."""

    def __init__(self, name: str, file: Path) -> None:
        self.tree = ast.parse(file.read_bytes())
        # ``node`` of an import, inside a function or not: those at the top level have the last word.
        self._import_nodes = sorted(
            (node for node in ast.walk(self.tree) if isinstance(node, ast.Import | ast.ImportFrom)),
            key=lambda node: node in self.tree.body,
        )
        self._package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self._name = name
        self._digests: dict[str, str] = {}

    @cached_property
    def definitions(self) -> dict[str, tuple[ast.stmt, ...]]:
        """What binds each name: its class, its function, or every assignment to it."""
        found: dict[str, tuple[ast.stmt, ...]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
            else:
                continue
            for name in names:
                found[name] = (*found.get(name, ()), node)
        return found

    @cached_property
    def imports(self) -> dict[str, Definition]:
        """Name here -> what it stands for elsewhere."""
        found: dict[str, Definition] = {}
        for node in self._import_nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:  # `import a.b` binds a, `import a.b as c` binds a.b
                    found[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
                continue
            source = self._source(node)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found[alias.asname or alias.name] = (inner, "") if _file(inner) else (source, alias.name)
        return found

    def _source(self, node: ast.ImportFrom) -> str:
        """The module that something is imported from, a relative one by its whole name."""
        above = self._package.split(".")[: self._package.count(".") + 2 - node.level] if node.level else []
        return ".".join([*above, *([node.module] if node.module else [])])

    def imported(self) -> Iterator[str]:
        """Dotted names of modules that may be imported from here, packages above them left out."""
        for node in self._import_nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            else:
                source = self._source(node)
                yield from (source, *(f"{source}.{alias.name}" for alias in node.names))

    def named(self, name: str) -> Iterator[Definition]:
        """The definitions whose names stand in that of ``name``, of this module and of others."""
        for leaf in (leaf for node in self.definitions[name] for leaf in _executed(node)):
            if isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name):
                source, inner = self.imports.get(leaf.value.id, ("", "?"))
                if not inner:  # of a module: what is taken out of it
                    yield source, leaf.attr
            elif isinstance(leaf, ast.Name):
                if leaf.id in self.definitions:
                    yield self._name, leaf.id
                elif self.imports.get(leaf.id, ("", ""))[1]:
                    yield self.imports[leaf.id]

    def digest(self, name: str) -> str:
        """Of one definition, or of the whole for ``""``."""
        if name not in self._digests:
            nodes: Sequence[ast.AST] = self.definitions[name] if name else [self.tree]
            text = repr([_plain(node) for node in nodes])
            self._digests[name] = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        return self._digests[name]


def _read(module: str) -> _Module | None:
    """A module's source; None where it has none."""
    file = _file(module)
    return _parsed(module, file) if file else None


@lru_cache(maxsize=512)
def _parsed(module: str, file: Path) -> _Module:
    return _Module(module, file)


def forget() -> None:
    """Read every file anew from here on."""
    _parsed.cache_clear()


def _file(module: str) -> Path | None:
    """Where a module of an imported package of this project lies; None where there is none."""
    package, *rest = module.split(".")
    root = getattr(sys.modules.get(package), "__file__", None) if package in OURS else None
    if not root:
        return None
    place = Path(root).parent.joinpath(*rest)
    files = (place.with_suffix(".py"), place / "__init__.py") if rest else (Path(root),)
    return next((file for file in files if file.is_file()), None)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes, without what only people and tools read: docstrings, and types of arguments and results."""
    yield node
    for name, value in ast.iter_fields(node):
        if not _is_type(node, name):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_text(child):
                    yield from _executed(child)


def _plain(node: object) -> object:
    """The same as plain data, equal from every version of Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        (name, value)
        for name, value in ast.iter_fields(node)
        if value not in (None, []) and name not in _UNSAID and not _is_type(node, name)
    ]
    return type(node).__name__, [(name, _plain(value)) for name, value in fields]


_UNSAID = frozenset({"ctx", "kind", "type_comment", "type_params", "type_ignores"})


def _is_type(node: ast.AST, field: str) -> bool:
    """Whether a field is a type for tools. Of a class's fields they count: pydantic reads them."""
    return field in ("returns", "annotation") and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.arg)


def _is_text(node: object) -> bool:
    """A docstring, of a module, a class, a function or a variable; or imports for types alone."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
