"""What is wrong with a user's input: every problem at once, each with its path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

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
    """A received value as the user wrote it, with its type where that is what is wrong; a long one is cut short."""
    if value is None:
        return "nothing"
    written = repr(value)
    if len(written) > 100:
        written = f"{written[:90]}… ({len(written)} characters)"
    if isinstance(value, str):
        return f"{written} (text)" if value else "'' (empty text)"
    return written


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
        # A list counts as too short for pydantic when its values are wrong, which is said of each of them.
        details = [
            detail
            for detail in error.errors(include_url=False)
            if detail["type"] != "too_short" or len(detail["input"]) < detail["ctx"]["min_length"]
        ]
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


_ALLOWED = {
    "bool_type": "true or false",
    "dict_type": "a mapping, such as {{key: value}}",
    "finite_number": "a finite number",
    "float_type": "a finite number, such as 3e-4",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "missing": "a value: the key is required",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "string_type": "text",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "tuple_type": "a list, such as [a, b]",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a mapping with the key {discriminator}",
    "value_error": "{error}",
}
"""Every kind of pydantic error that a field of ours can give, in a YAML writer's words."""


def matching(pattern: str, words: str) -> AfterValidator:
    """What text must look like: all of it matches ``pattern``, which is said in ``words``, with an example."""

    def check_text(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(words)
        return text

    return AfterValidator(check_text)


def _problem(cls: type[BaseModel], detail: Any) -> Problem:
    """One pydantic error in this project's words."""
    names, path = _walk(cls, tuple(detail["loc"]))
    kind, received = detail["type"], show(detail["input"])
    if kind == "extra_forbidden":
        name = str(path[-1])
        return Problem(
            path=path, received=f"unknown key {name!r}", allowed=one_of(name, _walk(cls, tuple(detail["loc"])[:-1])[0])
        )
    if kind == "missing":
        received = "nothing"
    if path[-1:] == ("[key]",):
        path, received = path[:-1], f"the name {detail['input']!r}"
    if kind in ("model_type", "model_attributes_type"):
        allowed = "a mapping with keys out of " + ", ".join(names)
    elif kind == "missing" and isinstance(path[-1], int):
        path, received, allowed = path[:-1], f"a list of {path[-1]}", "one value more"
    elif kind in _ALLOWED:
        allowed = _ALLOWED[kind].format(**detail.get("ctx", {}))
    else:
        allowed = detail["msg"]
    return Problem(path=path, received=received, allowed=allowed)


def _walk(cls: type[BaseModel], path: Path) -> tuple[list[str], Path]:
    """Valid keys of the (nested) model at ``path``, and the path as it is written.

    Pydantic puts the tag of a discriminated union into a path, which picks the member so named, and is not written.
    """
    found: list[type[BaseModel]] = [cls]
    written: list[str | int] = []
    for part in path:
        inner = [model.model_fields[str(part)].annotation for model in found if str(part) in model.model_fields]
        tagged = [m for m in found if "type" in m.model_fields and part in get_args(m.model_fields["type"].annotation)]
        if not inner and tagged:
            found = tagged
            continue
        written.append(part)
        found = [model for annotation in inner for model in _models_in(annotation)] or found
    names = {name for model in found for name in model.model_fields}
    names |= {"type" for model in found if isinstance(getattr(model, "type", None), str)}
    return sorted(names), tuple(written)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
