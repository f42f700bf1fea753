"""How text becomes tokens, as a YAML declares it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from llama_variants.errors import ConfigError, Problem, StrictModel
from runners.data.declared import Pin, check_commit, contents, local


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

        Raises ConfigError for a hub id without the revision of a commit, and for a folder without such files.
        """
        folder = local(self.path)
        if not folder.is_dir():
            if self.revision is None:
                received = f"{self.path!r}, which is no folder, and no revision"
                problem = Problem(
                    path=("data", "tokenizer"), received=received, allowed="a folder, or a hub id and its revision"
                )
                raise ConfigError([problem])
            check_commit(self.revision, ("data", "tokenizer", "revision"))
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
        return self.model_dump(mode="json", exclude={"path"}) | {"files": contents(files)}


class PackageTokenizer(StrictModel):
    """A tokenizer inside a GGUF file that a pinned wheel carries."""

    type: Literal["package"]
    package: Pin
    gguf_file: str  # the file's name; the one member of the wheel that ends so
    end_of_text: str | None = None  # as above

    def identity(self) -> dict[str, Any]:
        """The pin stands for the content."""
        return self.model_dump(mode="json")


class NumbersTokenizer(StrictModel):
    """Numbers between spaces, as tasks write them: each is the token of that id. Id 0 ends a document."""

    type: Literal["numbers"]
    vocab_size: Annotated[int, Field(ge=2)]

    def identity(self) -> dict[str, Any]:
        """The declaration."""
        return self.model_dump(mode="json")


TokenizerConfig = BPETokenizer | PretrainedTokenizer | PackageTokenizer | NumbersTokenizer
