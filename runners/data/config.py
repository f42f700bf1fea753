"""Where text comes from and how it becomes tokens, as a YAML declares it."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, Strict, model_validator

from llama_variants.errors import ConfigError, Problem, StrictModel, matching

PIPELINE_VERSION = 1
"""Raised whenever the same declaration gives other token bytes, so that old shards and old runs stop counting."""

Pin = Annotated[
    str,
    matching(
        r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+ sha256:[0-9a-f]{64}",
        "a wheel as 'name==version sha256:' and 64 hex digits, which `pip hash` prints",
    ),
]
"""One wheel: ``name==version sha256:digest``."""
Pins = Annotated[tuple[Pin, ...], Strict(False), Field(min_length=1)]
Globs = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]


def pin_name(pin: str) -> str:
    """The package's name in its normal form (lower case, hyphens)."""
    return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower()


def file_sha256(file: Path) -> str:
    """Hex digest of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _contents(files: Iterable[Path]) -> list[list[str]]:
    """Name and digest of each file, without its folder."""
    return [[file.name, _digest_at(file.resolve(), file.stat().st_mtime_ns, file.stat().st_size)] for file in files]


@lru_cache(maxsize=4096)  # a plan asks once for each of its arms
def _digest_at(file: Path, mtime_ns: int, size: int) -> str:
    return file_sha256(file)


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


class FilesSource(StrictModel):
    """Files by glob: text (a document each), JSONL (a document a line) and Parquet (a document a row)."""

    type: Literal["files"]
    train: Globs
    validation: Globs
    text_field: str = "text"

    def files(self, split: str) -> list[Path]:
        """Files of a split, sorted. Raises ConfigError for a glob that matches none."""
        found: list[Path] = []
        for pattern in getattr(self, split):
            matches = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
            if not matches:
                path = ("data", "source", split)
                problem = Problem(
                    path=path, received=f"{pattern!r}, which matches no file", allowed="a glob of existing files"
                )
                raise ConfigError([problem])
            found += matches
        return sorted(set(found))

    def identity(self) -> dict[str, Any]:
        """Name and content of every file: files can change, so they are read."""
        splits = {split: _contents(self.files(split)) for split in ("train", "validation")}
        return {"type": self.type, "text_field": self.text_field, **splits}


HubSplit = Annotated[str, matching(r"[\w.-]+(\[\d*:\d*\])?", "a split's name, such as train or train[2000:50000]")]
"""A split of a dataset, or a run of its documents: ``train``, ``train[2000:50000]``."""


class HubSource(StrictModel):
    """A dataset of the Hugging Face hub (or a local dataset folder), pinned by revision.

    Documents are streamed, so a slice with an end downloads no more than it needs.
    """

    type: Literal["hub"]
    dataset: str
    config: str | None = None
    train: HubSplit
    validation: HubSplit
    revision: str
    text_field: str = "text"

    def identity(self) -> dict[str, Any]:
        """The pinned revision stands for the content; the files of a local folder are read.

        Raises ConfigError for a hub id whose revision can move, as a branch does.
        """
        files = sorted(file for file in Path(self.dataset).rglob("*") if file.is_file())
        if not files and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            path = ("data", "source", "revision")
            problem = Problem(
                path=path, received=repr(self.revision), allowed="the 40 hex digits of a commit: a branch moves"
            )
            raise ConfigError([problem])
        return self.model_dump(mode="json") | ({"files": _contents(files)} if files else {})


class BPETokenizer(StrictModel):
    """A byte-level BPE trained on the training split."""

    type: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=257)]  # the bytes and the end-of-text token
    train_bytes: PositiveInt = 8_000_000  # about as much text is sampled to learn the merges from

    def identity(self) -> dict[str, Any]:
        """The declaration and the training text give the same tokenizer everywhere."""
        return self.model_dump(mode="json")


class PretrainedTokenizer(StrictModel):
    """A tokenizer that transformers loads: a local folder or a hub id, or a GGUF file in either."""

    type: Literal["pretrained"]
    path: str
    revision: str | None = None  # required for a hub id
    gguf_file: str | None = None
    end_of_text: str | None = None  # the token behind every document; without it, the tokenizer's own

    def identity(self) -> dict[str, Any]:
        """A hub id by its revision, a local folder by the content of its tokenizer files.

        Raises ConfigError for a hub id without a revision, and for a folder without such files.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            if self.revision is None:
                received = f"{self.path!r}, which is no folder, and no revision"
                problem = Problem(
                    path=("data", "tokenizer"), received=received, allowed="a folder, or a hub id and its revision"
                )
                raise ConfigError([problem])
            return self.model_dump(mode="json")
        suffixes = (".json", ".txt", ".model")  # every form of vocabulary that transformers reads
        names = [self.gguf_file] if self.gguf_file else [f.name for f in folder.iterdir() if f.suffix in suffixes]
        files = [folder / name for name in sorted(names) if (folder / name).is_file()]
        if not files:
            received = f"{self.path!r}, without {self.gguf_file or 'tokenizer files'}"
            problem = Problem(
                path=("data", "tokenizer", "path"), received=received, allowed="a folder that holds a tokenizer"
            )
            raise ConfigError([problem])
        return self.model_dump(mode="json", exclude={"path"}) | {"files": _contents(files)}


class PackageTokenizer(StrictModel):
    """A tokenizer inside a GGUF file that a pinned wheel carries."""

    type: Literal["package"]
    package: Pin
    gguf_file: str  # the file's name; the one member of the wheel that ends so
    end_of_text: str | None = None  # as above

    def identity(self) -> dict[str, Any]:
        """The pin stands for the content."""
        return self.model_dump(mode="json")


class DataConfig(StrictModel):
    """The `data` section of a base."""

    source: Annotated[PackagesSource | FilesSource | HubSource, Field(discriminator="type")]
    tokenizer: Annotated[BPETokenizer | PretrainedTokenizer | PackageTokenizer, Field(discriminator="type")]

    def identity(self) -> dict[str, Any]:
        """All that bears on the token bytes, known without building them (local files are read).

        Raises ConfigError when a file or a revision that it needs is not there.
        """
        return {
            "source": self.source.identity(),
            "tokenizer": self.tokenizer.identity(),
            "pipeline": PIPELINE_VERSION,
        }


class DataError(RuntimeError):
    """Data could not be had: the network, a damaged wheel, a full disk."""
