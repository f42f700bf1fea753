"""What source code means: digests of syntax trees, which comments, docstrings and layout leave alone.

A run's losses depend on the code that it executes. Of a module that always runs the whole counts; of a class that a
recipe chooses, out of many in its file, only the definitions that it needs: itself, what it names, and what these name.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

DIGITS = 8  # of a digest, in hexadecimal

Definition = tuple[str, str]
"""A module's dotted name, and a name at its top level; "" for the whole module."""


def module_meaning(module: str) -> dict[str, str]:
    """``{module: digest}`` of a whole module, by its dotted name."""
    return {module: _digest(_tree(_file(module)))}


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
        if part in seen or module in skip or not (file := _source(module)):
            continue
        if not name:
            seen |= module_meaning(module)
            continue
        nodes = _definitions(file).get(name, ())
        if not nodes or (module in apart and not isinstance(nodes[0], ast.FunctionDef)):
            continue
        seen[part] = _digest(*nodes)
        for node in nodes:
            waiting += [d for d in _named(node, module, file) if _near(d[0], cls.__module__)]
    return seen


def digest(meaning: Mapping[str, str]) -> str:
    """One digest of several definitions together."""
    return hashlib.sha256(repr(sorted(meaning.items())).encode()).hexdigest()[:DIGITS]


def _near(module: str, home: str) -> bool:
    """Whether names are followed from the module ``home`` into ``module``."""
    package = home.partition(".")[0]
    if module.partition(".")[0] == package:
        return True
    folders = [Path(file).resolve().parent for name in (module, home) if (file := _source(name))]
    return len(folders) == 2 and folders[0] == folders[1] and "site-packages" not in folders[0].parts


def _source(module: str) -> str:
    """The file of an imported module's source; "" where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file if file.endswith(".py") and Path(file).is_file() else ""


def _file(module: str) -> str:
    """The file of a module of an imported package, imported itself or not."""
    package, *rest = module.split(".")
    root = Path(str(sys.modules[package].__file__)).parent
    file = root.joinpath(*rest).with_suffix(".py") if rest else root / "__init__.py"
    return str(file if file.is_file() else root.joinpath(*rest, "__init__.py"))


def _tree(file: str) -> ast.Module:
    return _parsed(file, Path(file).stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _parsed(file: str, changed_ns: int) -> ast.Module:
    return ast.parse(Path(file).read_bytes())


def _definitions(file: str) -> dict[str, tuple[ast.stmt, ...]]:
    """What binds each name at the top level: its class, its function, or every assignment to it."""
    found: dict[str, tuple[ast.stmt, ...]] = {}
    for node in _tree(file).body:
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


def _imports(file: str, module: str) -> dict[str, Definition]:
    """Name in this module -> what it stands for elsewhere."""
    package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
    found: dict[str, Definition] = {}
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:  # `import a.b` binds a, `import a.b as c` binds a.b
                found[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                whole = alias.name == "*" or inner in sys.modules
                name = source if alias.name == "*" else inner
                found[alias.asname or alias.name] = (name, "") if whole else (source, alias.name)
    return found


def _named(node: ast.stmt, module: str, file: str) -> Iterator[Definition]:
    """The definitions whose names stand in ``node``, of this module and of others."""
    own, elsewhere = _definitions(file), _imports(file, module)
    if "*" in elsewhere:
        yield elsewhere["*"]
    for leaf in ast.walk(node):
        if isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name):
            source, name = elsewhere.get(leaf.value.id, ("", "?"))
            if not name:  # of a module: what is taken out of it
                yield source, leaf.attr
        elif isinstance(leaf, ast.Name):
            if leaf.id in own:
                yield module, leaf.id
            elif leaf.id in elsewhere and elsewhere[leaf.id][1]:
                yield elsewhere[leaf.id]


def _digest(*nodes: ast.AST) -> str:
    return hashlib.sha256(repr([_plain(node) for node in nodes]).encode()).hexdigest()[:DIGITS]


def _plain(node: object) -> object:
    """A syntax tree as plain data, the same from every version of Python; without what only people and tools read."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    skipped = {"ctx", "kind", "type_comment", "type_params", "type_ignores"}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.arg):
        skipped |= {"returns", "annotation"}  # of a class's fields they count: pydantic reads them
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in skipped and value not in (None, [])]
    return type(node).__name__, [(name, _plain(value)) for name, value in fields]


def _is_text(node: object) -> bool:
    """A docstring, of a module, a class, a function or a variable."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
