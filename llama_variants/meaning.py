"""What source code means: digests of syntax trees, which comments, docstrings and layout leave alone.

A run's losses depend on the code that it executes. Of a module that always runs the whole counts; of a class that a
recipe chooses, out of many in its file, only the definitions that it needs: itself, what it names, and what these name.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

DIGITS = 8  # of a digest, in hexadecimal

Definition = tuple[str, str]
"""A module's dotted name, and a name at its top level; "" for the whole module."""


def module_meaning(module: str) -> dict[str, str]:
    """``{module: digest}`` of a whole module, by its dotted name. Its package is imported; itself it need not be."""
    found = _read(module)
    assert found is not None, f"there is no source of {module}"
    return {module: found.digest("")}


def class_meaning(cls: type, apart: Sequence[str] = (), skip: Sequence[str] = ()) -> dict[str, str]:
    """``{module:name: digest}`` of each definition that ``cls`` needs, its own first.

    Names are followed through the modules of the same top-level package, and, of a class that is not installed, through
    the modules that were imported from beside its own. Of a module in ``apart`` only functions count, of one in
    ``skip`` nothing: these are looked after otherwise.
    """
    seen: dict[str, str] = {}
    waiting: list[Definition] = [(cls.__module__, cls.__qualname__.partition(".")[0])]
    while waiting:
        module, name = waiting.pop()
        part = f"{module}:{name}" if name else module
        if part in seen or module in skip or not (found := _read(module)):
            continue
        nodes = found.definitions.get(name, ())
        if name and (not nodes or (module in apart and not isinstance(nodes[0], ast.FunctionDef))):
            continue
        seen[part] = found.digest(name)
        waiting += [one for one in found.named(name) if _near(one[0], cls.__module__)] if name else []
    return seen


def digest(meaning: Mapping[str, str]) -> str:
    """One digest of several definitions together."""
    return hashlib.sha256(repr(sorted(meaning.items())).encode()).hexdigest()[:DIGITS]


class _Module:
    """One module's source: its tree, what it defines at the top level, and what its names stand for elsewhere."""

    def __init__(self, name: str, file: Path) -> None:
        self.tree = ast.parse(file.read_bytes())
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
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:  # `import a.b` binds a, `import a.b as c` binds a.b
                    found[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                above = self._package.split(".")[: self._package.count(".") + 2 - node.level] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = source if alias.name == "*" else f"{source}.{alias.name}"
                    whole = alias.name == "*" or _file(inner) is not None
                    found[alias.asname or alias.name] = (inner, "") if whole else (source, alias.name)
        return found

    def named(self, name: str) -> Iterator[Definition]:
        """The definitions whose names stand in that of ``name``, of this module and of others."""
        if "*" in self.imports:
            yield self.imports["*"]
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
    """A module's source as it is now; None where it has none."""
    file = _file(module)
    return _parsed(module, file, file.stat().st_mtime_ns) if file else None


@lru_cache(maxsize=512)
def _parsed(module: str, file: Path, changed_ns: int) -> _Module:
    return _Module(module, file)


def _file(module: str) -> Path | None:
    """Where a module's source is: as imported, or, of an imported package, where it would be imported from."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded) if loaded.endswith(".py") and Path(loaded).is_file() else None
    package, *rest = module.split(".")
    root = getattr(sys.modules.get(package), "__file__", None)
    if not root or not rest or Path(root).name != "__init__.py":
        return None
    place = Path(root).parent.joinpath(*rest)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _near(module: str, home: str) -> bool:
    """Whether names are followed from the module ``home`` into ``module``."""
    if module.partition(".")[0] == home.partition(".")[0]:
        return True
    folders = [file.resolve().parent for name in (module, home) if (file := _file(name))]
    return len(folders) == 2 and folders[0] == folders[1] and "site-packages" not in folders[0].parts


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
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
