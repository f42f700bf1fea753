"""Where text comes from and how it becomes tokens, as a YAML declares it."""

from __future__ import annotations

import codecs
import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
    model_validator,
)

from llama_variants.errors import ConfigError, Problem, StrictModel, matching
from llama_variants.errors import Path as FieldPath
from llama_variants.types import OBSERVES, Neutral, bearing
from runners.data.declared import Pins, check_commit, contents, local, pin_name, version
from runners.data.declared import file_sha256 as file_sha256
from runners.data.formats import Format, Reading, open_stream, reading, summary
from runners.data.synthetic import SyntheticSource
from runners.data.tokenizer_config import NumbersTokenizer, TokenizerConfig

PIPELINE_VERSION = 1
"""Raised whenever the same declaration gives other token bytes, so that old shards and old runs stop counting."""

Globs = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]


@lru_cache(maxsize=4096)
def _reading_at(file: Path, mtime_ns: int, size: int, declared: Format | Literal["auto"], path: FieldPath) -> Reading:
    return reading(file, declared, path)


_SUFFIXES_BEFORE: Mapping[str, tuple[Format, ...]] = {
    ".jsonl": ("jsonl", "json"),
    ".json": ("jsonl", "json"),
    ".parquet": ("parquet",),
}


@lru_cache(maxsize=4096)
def _read_alike(file: Path, mtime_ns: int, size: int, how: Reading) -> bool:
    """Whether a file gives the texts that it gave before there was a choice of formats.

    It went by the last suffix, exactly, and everything else was text, with its line ends translated and its byte-order
    mark kept.
    """
    before = _SUFFIXES_BEFORE.get(file.suffix, ("text",))
    if how.format not in before:
        return False
    if how.format != "text":
        return True
    with file.open("rb") as raw, open_stream(file, how.compression) as stream:
        return not raw.read(3).startswith(codecs.BOM_UTF8) and not any(b"\r" in line for line in stream)


class PackagesSource(StrictModel):
    """Text files out of pinned pure-Python wheels; whole packages are held out for validation."""

    type: Literal["packages"]
    train: Pins
    validation: Pins
    extensions: Annotated[tuple[str, ...], Strict(False)] = (".py", ".rst", ".md", ".txt")

    @model_validator(mode="after")
    def _held_out(self) -> PackagesSource:
        shared = {pin_name(pin) for pin in self.train} & {pin_name(pin) for pin in self.validation}
        if shared:
            raise ValueError(f"packages either for training or for validation; in both: {', '.join(sorted(shared))}")
        return self

    def identity(self) -> dict[str, Any]:
        """The pins themselves."""
        return self.model_dump(mode="json")


OnBadRow = Annotated[Literal["error", "skip"], Neutral("error")]
"""What becomes of a row that gives no text: it is refused, or left out and counted in the manifest."""


class FilesSource(StrictModel):
    """Files by name or glob: text (a document each), JSON, CSV, TSV and Parquet (a document a row), compressed or not.

    ``format``: how all of them are read, where their names do not say (:mod:`runners.data.formats`).
    """

    type: Literal["files"]
    train: Globs
    validation: Globs
    text_field: str = "text"
    format: Annotated[Format | Literal["auto"], OBSERVES] = "auto"  # what counts is how each file is read
    on_bad_row: OnBadRow = "error"

    def files(self, split: str) -> list[Path]:
        """Files of a split, sorted: each name stands for the file so named, else for the files that it matches.

        Raises ConfigError for a name that gives none, and for a folder.
        """
        found = {file for name in getattr(self, split) for file in _matches(name, ("data", "source", split))}
        return sorted(found)

    def readings(self, split: str) -> list[tuple[Path, Reading]]:
        """The files of a split, and how each is read. Raises ConfigError with every file that cannot be."""
        path = ("data", "source", split)
        found: list[tuple[Path, Reading]] = []
        problems: list[Problem] = []
        for file in self.files(split):
            try:
                how = _reading_at(file, *version(file), self.format, path)
                found.append((file, how))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return found

    def taken(self, split: str) -> str:
        """Which files a split takes, in a line."""
        return summary(self.readings(split))

    def most_bytes(self, split: str) -> int | None:
        """Bytes that the texts of a split and a byte behind each come to at most; None where only reading would tell.

        In rows of text each has at least a line end or a delimiter of its own, and escapes only make them longer.
        """
        found = self.readings(split)
        if any(how.packed for _, how in found):
            return None
        return sum(file.stat().st_size + 1 for file, _ in found)

    def identity(self) -> dict[str, Any]:
        """Name and content of every file: files can change, so they are read.

        And how it is read, where that is not what it always was; so text that comes out otherwise has another identity.
        """
        splits = {}
        for split in ("train", "validation"):
            found = self.readings(split)
            splits[split] = [
                named if _read_alike(file, *version(file), how) else [*named, str(how)]
                for (file, how), named in zip(found, contents(file for file, _ in found), strict=True)
            ]
        kept = {digest for _, digest, *_ in splits["validation"]}
        if kept.issuperset(digest for _, digest, *_ in splits["train"]):
            received = "files that validation has too, all of them: it keeps what is in both"
            problem = Problem(path=("data", "source", "train"), received=received, allowed="text that validation lacks")
            raise ConfigError([problem])
        declared = {"type": self.type, "text_field": self.text_field, "on_bad_row": self.on_bad_row}
        return bearing(self, declared) | splits


def _matches(name: str, path: FieldPath) -> list[Path]:
    """The file that is called ``name``, or those that match it as a glob, but for hidden ones that it does not name."""
    # Of os.path: what cannot be a path, or may not be looked at, is one that is not there.
    home = str(local(name))
    for literal in (name, home):
        if os.path.isfile(literal):  # noqa: PTH113
            return [Path(literal)]
        if os.path.isdir(literal):  # noqa: PTH112
            kinds = Counter("".join(file.suffixes[-2:]) for file in Path(literal).rglob("[!.]*") if file.is_file())
            globs = [f"'{name.rstrip('/')}/**/*{kind}' ({count:,})" for kind, count in kinds.most_common(3)]
            allowed = f"the files in it, as {' or '.join(globs)}" if globs else "files, and this folder has none"
            raise ConfigError([Problem(path=path, received=f"{name!r}, which is a folder", allowed=allowed)])
    matches = [Path(match) for match in glob.glob(home, recursive=True) if os.path.isfile(match)]  # noqa: PTH113, PTH207
    if not matches:
        allowed = "the name of a file, or a glob that matches some"
        raise ConfigError([Problem(path=path, received=f"{name!r}, which matches no file", allowed=allowed)])
    return matches


HubSplit = Annotated[str, matching(r"[\w.-]+(\[\d*:\d*\])?", "a split's name, such as train or train[2000:50000]")]
"""A split of a dataset, or a run of its documents: ``train``, ``train[2000:50000]``."""


class HubSource(StrictModel):
    """A dataset of the Hugging Face hub (or a local dataset folder), pinned by revision.

    Documents are streamed, so a slice with an end downloads no more than it needs, and kept in the cache.
    """

    type: Literal["hub"]
    dataset: str
    config: str | None = None
    train: HubSplit
    validation: HubSplit
    revision: str
    text_field: str = "text"
    on_bad_row: OnBadRow = "error"

    def identity(self) -> dict[str, Any]:
        """The pinned revision stands for the content; the files of a local folder are read.

        Raises ConfigError for a hub id whose revision can move, as a branch does.
        """
        files = sorted(file for file in local(self.dataset).rglob("*") if file.is_file())
        if not files:
            check_commit(self.revision, ("data", "source", "revision"))
        return bearing(self, self.model_dump(mode="json")) | ({"files": contents(files)} if files else {})


class Part(StrictModel):
    """A source in a mixture. It is read ``max_epochs`` times at most."""

    weight: Annotated[PositiveFloat, Field(allow_inf_nan=False)]
    source: Annotated[PackagesSource | FilesSource | HubSource, Field(discriminator="type")]
    max_epochs: PositiveInt = 1


PartName = Annotated[str, matching(r"\w[\w.-]*", "a name of letters, digits, and . _ -")]


class MixtureSource(StrictModel):
    """Several sources, their documents interleaved so that each has its weight's share of the training tokens.

    Weights count relative to their sum. The mixture has ``tokens`` training tokens, and up to a document more; without
    that number it ends when the first part is used up. Validation is the validation text of all parts.
    """

    type: Literal["mixture"]
    parts: Annotated[
        dict[PartName, Part], Field(min_length=2), AfterValidator(lambda parts: dict(sorted(parts.items())))
    ]
    tokens: PositiveInt | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Of the training tokens, by part; they add up to 1."""
        return {name: float(self._share(part)) for name, part in self.parts.items()}

    def _share(self, part: Part) -> Fraction:
        """Exactly, of the decimals that are written: 3 to 1 is 6 to 2."""
        return Fraction(str(part.weight)) / sum(Fraction(str(other.weight)) for other in self.parts.values())

    def taken(self, split: str) -> str:
        """Which files a split takes, in a line."""
        files = {name: part.source for name, part in self.parts.items() if isinstance(part.source, FilesSource)}
        return "; ".join(f"{name}: {source.taken(split)}" for name, source in files.items())

    def most_bytes(self, split: str) -> int | None:
        """As :meth:`FilesSource.most_bytes`, with each part as often as it may be read."""
        most = 0
        for part in self.parts.values():
            size = part.source.most_bytes(split) if isinstance(part.source, FilesSource) else None
            if size is None:
                return None
            most += size * (part.max_epochs if split == "train" else 1)
        return most

    def identity(self) -> dict[str, Any]:
        """The identity of each part, and what decides how they are put together; not the order of the names."""
        parts = {}
        for name, part in self.parts.items():
            with in_part(name):
                parts[name] = {
                    "share": str(self._share(part)),
                    "max_epochs": part.max_epochs,
                    "source": part.source.identity(),
                }
        return {"type": self.type, "tokens": self.tokens, "parts": parts}


@contextmanager
def in_part(name: str) -> Iterator[None]:
    """Problems of a source inside are those of the part ``name`` of a mixture, and say so."""
    try:
        yield
    except ConfigError as error:
        own = ("data", "source")
        place = (*own, "parts", name, "source")
        raise ConfigError(
            replace(problem, path=place + problem.path[2:]) if problem.path[:2] == own else problem
            for problem in error.problems
        ) from None


Source = PackagesSource | FilesSource | HubSource | SyntheticSource | MixtureSource


class DataConfig(StrictModel):
    """The `data` section of a base."""

    source: Annotated[Source, Field(discriminator="type")]
    tokenizer: Annotated[TokenizerConfig, Field(discriminator="type")]
    dedupe: bool = False  # drop training documents that hold 64 tokens of validation, word for word

    @model_validator(mode="after")
    def _tasks_are_numbers(self) -> DataConfig:
        if isinstance(self.source, SyntheticSource) != isinstance(self.tokenizer, NumbersTokenizer):
            raise ValueError("a source of type synthetic with a tokenizer of type numbers, or neither")
        if isinstance(self.source, SyntheticSource) and isinstance(self.tokenizer, NumbersTokenizer):
            least = self.source.task.num_symbols + 1
            if self.tokenizer.vocab_size < least:
                raise ValueError(f"a tokenizer with vocab_size {least} or more for this task")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Recipes that were kept before there was ``dedupe`` read the same."""
        return {name: value for name, value in plain(self).items() if name != "dedupe" or value}

    def identity(self) -> dict[str, Any]:
        """All that bears on the token bytes, known without building them (local files are read).

        Raises ConfigError when a file or a revision that it needs is not there.
        """
        return {
            "source": self.source.identity(),
            "tokenizer": self.tokenizer.identity(),
            "pipeline": PIPELINE_VERSION,
            **({"dedupe": True} if self.dedupe else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Tokens of both splits, and token ids of the tokenizer, as far as they are known; None where they are not."""

    train: int | None = None
    validation: int | None = None
    vocab: int | None = None


def too_large(num_ids: int, vocab_size: int) -> Problem:
    """A tokenizer with more token ids than a model of ``vocab_size`` has embeddings for."""
    allowed = f"at least the tokenizer's {num_ids}"
    return Problem(path=("model", "vocab_size"), received=str(vocab_size), allowed=allowed)


class DataError(RuntimeError):
    """Data could not be had: the network, a damaged wheel, a full disk."""
