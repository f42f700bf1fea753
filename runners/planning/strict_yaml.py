"""YAML read strictly: nothing is coerced, nothing executed, and every value knows the line it stands on.

PyYAML's own loaders follow YAML 1.1, in which ``1e-3`` is text, ``012`` is ten, ``12:30`` is 750, ``yes`` is true and
the second of two equal keys wins. Here numbers are decimal, only true and false are booleans, and a key that is
written twice is a problem. Anchors, aliases and merge keys (``<<: *common``) work as everywhere; a key at the top
that begins with ``x-`` is a place for anchors, and is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import yaml

from llama_variants.errors import ConfigError, Path, Problem, closest

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_].*")
_MERGE = "tag:yaml.org,2002:merge"
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}


@dataclass(kw_only=True)
class Document:
    """Plain data from one file, the line of every path in it, and what was wrong with the writing itself."""

    file: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def locate(self, problem: Problem) -> Problem:
        """The problem with the file and line of its path, or of the nearest enclosing path that is written."""
        path = problem.path
        while path not in self.lines and path:
            path = path[:-1]
        return replace(problem, where=f"{self.file}:{self.lines.get(path, 1)}")


def load(file: FilePath) -> Document:
    """Read one file. Raises ConfigError when it cannot be read as YAML at all."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        near = {
            found.stem: str(found)
            for folder in (file.parent, FilePath("experiments"))
            for found in folder.glob("*.yaml")
        }
        meant = closest(file.stem, near)
        hint = f"did you mean {near[meant]}? " if meant else ""
        problem = Problem(path=(), received=f"{file} ({error.strerror})", allowed=f"{hint}a YAML file that can be read")
        raise ConfigError([problem]) from None
    except UnicodeDecodeError:
        problem = Problem(path=(), received=f"{file}, which is not UTF-8", allowed="a YAML file in UTF-8")
        raise ConfigError([problem]) from None
    return _read(text, str(file))


def parse(text: str, name: str) -> Any:
    """Plain data of a few words of YAML. Raises ConfigError, with ``name`` as the place, for all that is wrong."""
    document = _read(text, name)
    if document.problems:
        raise ConfigError(map(document.locate, document.problems))
    return document.data


def _read(text: str, file: str) -> Document:
    document = Document(file=file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        problem = Problem(path=(), received="values nested too deep", allowed="plain values", where=file)
        raise ConfigError([problem]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        received = getattr(error, "problem", None) or str(error).splitlines()[0]
        problem = Problem(path=(), received=received, allowed="one well-formed YAML document", where=f"{file}:{line}")
        raise ConfigError([problem]) from None
    if node is not None:
        try:
            document.data = _convert(node, (), document, set())
        except (RecursionError, ValueError) as error:  # int() refuses thousands of digits
            if isinstance(error, ConfigError):
                raise
            problem = Problem(path=(), received="values too deep or too long", allowed="plain values", where=file)
            raise ConfigError([problem]) from None
    return document


def _convert(node: yaml.Node, path: Path, document: Document, above: set[int]) -> Any:
    """Plain data of ``node``; lines and problems go into ``document``. ``above``: nodes that enclose this one."""
    document.lines.setdefault(path, node.start_mark.line + 1)
    if len(document.lines) > 10_000 or id(node) in above:
        # Aliases let a short file stand for an endless one.
        problem = Problem(
            path=path[:3],
            received="aliases that nest or multiply",
            allowed="at most 10,000 values",
            where=document.file,
        )
        raise ConfigError([problem])
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.removeprefix("tag:yaml.org,2002:").startswith(
        "python"
    ):
        document.problems.append(
            Problem(path=path, received=f"the tag {node.tag}", allowed="plain values without tags")
        )
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*path, i), document, above | {id(node)}) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, path, document, above | {id(node)})
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _convert_mapping(node: yaml.MappingNode, path: Path, document: Document, above: set[int]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, child in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):  # own keys have the last word
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(
                Problem(path=path, received="a key that is a list or a mapping", allowed="keys that are text")
            )
            continue
        if key in first:
            document.lines[(*path, key, "")] = line  # a place of its own: the first one keeps the key's
            document.problems.append(
                Problem(
                    path=(*path, key, ""),
                    received=f"the key {key!r} a second time (first on line {first[key]})",
                    allowed="each key once",
                )
            )
            continue
        first[key] = line
        if key_node.tag == _MERGE:
            merged = _merged(child, path, document, above)
            continue
        document.lines[(*path, key)] = line
        value = _convert(child, (*path, key), document, above)
        if path or not key.startswith("x-"):
            data[key] = value
    return merged | data


def _merged(node: yaml.Node, path: Path, document: Document, above: set[int]) -> dict[str, Any]:
    """What a merge key brings in: a mapping, or several of which the first has the last word."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    data: dict[str, Any] = {}
    for part in reversed(parts):
        if not isinstance(part, yaml.MappingNode):
            received, allowed = (
                "a merge key (<<) of something else",
                "the alias of a mapping, or a list of such aliases",
            )
            document.lines[(*path, "<<")] = part.start_mark.line + 1
            document.problems.append(Problem(path=(*path, "<<"), received=received, allowed=allowed))
            continue
        data |= _convert(part, path, document, above)
    return data


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style is not None:  # quoted or block text
        return text
    if text.lower() in _CONSTANTS and text in (text.lower(), text.capitalize(), text.upper()):
        return _CONSTANTS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text)
    return text
