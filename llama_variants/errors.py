"""What is wrong with a user's input: every problem at once, each with its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: where it stands, what was received and what is allowed there."""

    path: Path
    received: str
    allowed: str
    where: str = ""  # "file:line", filled in by whoever read the file

    def under(self, prefix: Path) -> Problem:
        """The same problem seen from an enclosing mapping."""
        return replace(self, path=prefix + self.path)

    def __str__(self) -> str:
        place = ".".join(str(part) for part in self.path if part != "") or "(top level)"
        lead = f"{self.where}: " if self.where else ""
        return f"{lead}{place}: received {self.received}; allowed: {self.allowed}"


class ConfigError(ValueError):
    """The user's input is wrong. Carries all :class:`Problem` records of one input, in order."""

    def __init__(self, problems: Iterable[Problem], title: str = "") -> None:
        self.problems = tuple(problems)
        self.title = title
        count = len(self.problems)
        head = title or f"{count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def show(value: object) -> str:
    """A received value as the user wrote it, with its type where that is what is wrong."""
    if isinstance(value, str):
        return f"{value!r} (text)" if value else "'' (empty text)"
    if value is None:
        return "nothing"
    return repr(value)


def closest(name: str, available: Iterable[str]) -> str | None:
    """The valid name that ``name`` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(name, list(available), n=1, cutoff=0.5)), None)


def one_of(name: str, available: Iterable[str]) -> str:
    """'did you mean' and the list of valid names, for the `allowed` part of a problem."""
    names = list(available)
    meant = closest(name, names)
    hint = f"did you mean {meant!r}? " if meant else ""
    return hint + "one of " + ", ".join(names) if names else "nothing"


class StrictModel(BaseModel):
    """Base of everything read from a file: frozen, no unknown keys, no coercion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def check(cls: type[M], data: object, fallback: Mapping[str, Any] | None = None) -> tuple[M | None, list[Problem]]:
    """Validate ``data`` as ``cls``: the object where one can be had, and every problem found.

    Values that are wrong are replaced by ``fallback``'s (or the default), so that an object can often be returned
    beside its problems and checks that need the whole of it can report theirs in the same message.
    """
    try:
        return cls.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(cls, detail) for detail in details]
    if not isinstance(data, Mapping):
        return None, problems
    wrong = {detail["loc"][0] for detail in details if detail["loc"]}
    repaired = {key: value for key, value in data.items() if key not in wrong}
    repaired |= {key: value for key, value in (fallback or {}).items() if key in wrong}
    try:
        return cls.model_validate(repaired), problems
    except ValidationError:
        return None, problems


def _problem(cls: type[BaseModel], detail: Any) -> Problem:
    """One pydantic error in this project's words."""
    path = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return Problem(
            path=path,
            received=f"unknown key {str(path[-1])!r}",
            allowed=one_of(str(path[-1]), _fields_at(cls, path[:-1])),
        )
    if detail["type"] == "missing":
        return Problem(path=path, received="nothing", allowed="a value: the key is required")
    allowed = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    for theirs, ours in (("a valid dictionary", "a mapping"), ("a valid tuple", "a list of values")):  # YAML's words
        allowed = allowed.replace(theirs, ours)
    if detail["type"] == "model_type":
        allowed = "a mapping with keys out of " + ", ".join(_fields_at(cls, path))
    return Problem(path=path, received=show(detail["input"]), allowed=allowed)


def _fields_at(cls: type[BaseModel], path: Path) -> list[str]:
    """Valid keys of the (nested) model at ``path``; a union's tag in the path picks the member so named."""
    found: list[type[BaseModel]] = [cls]
    for part in path:
        inner = [model.model_fields[str(part)].annotation for model in found if str(part) in model.model_fields]
        if inner:
            found = [model for annotation in inner for model in _models_in(annotation)]
        else:  # a tag of a discriminated union, or a key of a mapping: keep the members that carry the tag
            tagged = [
                m for m in found if "type" in m.model_fields and part in get_args(m.model_fields["type"].annotation)
            ]
            found = tagged or found
    names = {name for model in found for name in model.model_fields}
    return sorted(names | {"type" for model in found if isinstance(getattr(model, "type", None), str)})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
