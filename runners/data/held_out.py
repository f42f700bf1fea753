"""Text to evaluate on, tokenized as the evaluated model has it: the validation part of any source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from runners.data.atomic import whole_folder
from runners.data.batches import Corpus
from runners.data.config import PIPELINE_VERSION, DataError, FilesSource, MixtureSource, Source, file_sha256
from runners.data.manifest import dtype_of, open_built, write_manifest
from runners.data.progress import Say, silent
from runners.data.shards import open_source, write_split
from runners.data.tokenizer import TextTokenizer


def held_out(source: Source, tokenizer: TextTokenizer, cache: Path, say: Say = silent) -> Corpus:
    """The validation part of ``source`` in the tokens of ``tokenizer``; the training part is not read.

    Built once in ``cache``, whole or not at all, under a name of content and tokenizer.

    Raises:
        ConfigError: when a file is not there, holds no text, or the tokenizer loses too much of it.
        DataError: when the environment fails (network, damaged wheel, full disk).
    """
    identity = {"source": _identity(source), "tokenizer": _digest(tokenizer), "pipeline": PIPELINE_VERSION}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "texts" / name
    manifest = folder / "manifest.json"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not manifest.exists():
                _build(source, tokenizer, identity, folder, cache, say)
    except OSError as error:
        raise DataError(f"could not tokenize a text under {cache}: {error}") from error
    return open_built(folder)


def _build(
    source: Source,
    tokenizer: TextTokenizer,
    identity: dict[str, Any],
    folder: Path,
    cache: Path,
    say: Say,
) -> None:
    with whole_folder(folder.with_suffix(".partial"), folder) as partial:
        documents = open_source(source, cache)
        dtype = dtype_of(tokenizer)
        tokenizer.save(partial / "tokenizer.json")
        split = write_split(documents, "validation", tokenizer, dtype, partial, say)
        (partial / "train.bin").write_bytes(np.asarray([tokenizer.end_id], dtype).tobytes())  # a corpus has both
        write_manifest(
            partial, identity, tokenizer, {"validation": split, "train": {"tokens": 1, "bytes": 0}}, documents
        )
    say(f"tokenized {split['tokens']:,} tokens in {split['documents']:,} documents")


def _identity(source: Source) -> dict[str, Any]:
    """What of a source bears on its validation part. Files can change, so they are read."""
    if isinstance(source, FilesSource):
        files = [[path.as_posix(), file_sha256(path), str(how)] for path, how in source.readings("validation")]
        return {"type": source.type, "text_field": source.text_field, "on_bad_row": source.on_bad_row, "files": files}
    if isinstance(source, MixtureSource):
        return {"type": source.type, "parts": {name: _identity(part.source) for name, part in source.parts.items()}}
    return {name: value for name, value in source.identity().items() if name != "train"}


def _digest(tokenizer: TextTokenizer) -> list[Any]:
    """A tokenizer by its own file and the token that ends a document."""
    return [hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest(), tokenizer.end_id]
