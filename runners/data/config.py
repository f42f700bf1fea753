"""Where text comes from and how it becomes tokens, as a YAML declares it."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, Strict, StringConstraints, model_validator

from llama_variants.errors import ConfigError, Problem, StrictModel

PIPELINE_VERSION = 1
"""Raised whenever the same declaration gives other token bytes, so that old shards and old runs stop counting."""

Pin = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+ sha256:[0-9a-f]{64}$")]
"""One wheel: ``name==version sha256:digest``."""
Pins = Annotated[tuple[Pin, ...], Strict(False), Field(min_length=1)]
Globs = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]


def pin_name(pin: str) -> str:
    """The package's name in its normal form (lower case, hyphens)."""
    return pin.partition("==")[0].lower().replace("_", "-").replace(".", "-")


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
                raise ConfigError([Problem(path, f"{pattern!r}, which matches no file", "a glob of existing files")])
            found += matches
        return sorted(set(found))

    def identity(self) -> dict[str, Any]:
        """Name and content of every file: files can change, so they are read."""
        splits = {
            split: [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in self.files(split)]
            for split in ("train", "validation")
        }
        return {"type": self.type, "text_field": self.text_field, **splits}


class HubSource(StrictModel):
    """A dataset of the Hugging Face hub (or a local dataset folder), pinned by revision."""

    type: Literal["hub"]
    dataset: str
    config: str | None = None
    train: str  # a split, slices allowed: train[:99%]
    validation: str
    revision: str
    text_field: str = "text"

    def identity(self) -> dict[str, Any]:
        """The pinned revision stands for the content."""
        return self.model_dump(mode="json")


class BPETokenizer(StrictModel):
    """A byte-level BPE trained on the training split."""

    type: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=257)]  # the bytes and the end-of-text token
    train_bytes: PositiveInt = 8_000_000  # of text that the merges are learned from


class PretrainedTokenizer(StrictModel):
    """A tokenizer that transformers loads: a local folder or a hub id, or a GGUF file in either."""

    type: Literal["pretrained"]
    path: str
    revision: str | None = None
    gguf_file: str | None = None


class PackageTokenizer(StrictModel):
    """A tokenizer inside a GGUF file that a pinned wheel carries."""

    type: Literal["package"]
    package: Pin
    gguf_file: str  # the file's name; the one member of the wheel that ends so


class DataConfig(StrictModel):
    """The `data` section of a base."""

    source: Annotated[PackagesSource | FilesSource | HubSource, Field(discriminator="type")]
    tokenizer: Annotated[BPETokenizer | PretrainedTokenizer | PackageTokenizer, Field(discriminator="type")]

    def identity(self) -> dict[str, Any]:
        """All that bears on the token bytes, known without building them (a `files` source is read)."""
        return {
            "source": self.source.identity(),
            "tokenizer": self.tokenizer.model_dump(mode="json"),
            "pipeline": PIPELINE_VERSION,
        }


class DataError(RuntimeError):
    """Data could not be had: the network, a damaged wheel, a full disk."""
