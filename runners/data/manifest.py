"""A built corpus on disk: the manifest that is written last, and what is read before the files are believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from runners.data.batches import Corpus
from runners.data.config import DataError
from runners.data.declared import file_sha256, version
from runners.data.mixture import Mixture
from runners.data.sources import Documents
from runners.data.tokenizer import TextTokenizer


def write_manifest(
    folder: Path,
    identity: dict[str, Any],
    tokenizer: TextTokenizer,
    splits: dict[str, dict[str, Any]],
    documents: Documents | Mixture,
) -> None:
    """Write manifest.json last: what the other files of ``folder`` are, and a fingerprint of all."""
    digests = {name: file_sha256(folder / name) for name in sorted(file.name for file in folder.iterdir())}
    manifest = {
        "fingerprint": _fingerprint(identity, digests),
        "identity": identity,
        "dtype": dtype_of(tokenizer).str,
        "vocab_size": tokenizer.vocab_size,
        "end_id": tokenizer.end_id,
        "splits": splits,
        "sha256": digests,
        "files": documents.files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": _digest(manifest)}, indent=1))


def dtype_of(tokenizer: TextTokenizer) -> np.dtype[Any]:
    """In which a tokenizer's ids are kept."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def open_built(folder: Path) -> Corpus:
    """The corpus in ``folder``, read from end to end once in a process, so that damage is found before any training.

    Raises DataError naming the first file that is not what was built.
    """
    folder = folder.absolute()
    corpus = Corpus.open(folder, read_manifest(folder))
    versions = tuple((name, *_version(folder / name)) for name in sorted(corpus.manifest["sha256"]))
    if _VERIFIED.get(folder) != versions:
        corpus.verify()
        _VERIFIED[folder] = versions
    return corpus


_VERIFIED: dict[Path, tuple[tuple[str, int, int], ...]] = {}
"""Of each corpus, the files that were read, by what changes when their content does."""


def _version(file: Path) -> tuple[int, int]:
    return version(file) if file.exists() else (0, 0)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was built in ``folder``. Raises DataError where that cannot be read, or was changed."""
    file = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        digest = manifest.pop("digest", None)  # older ones have none
        if manifest["fingerprint"] == _fingerprint(manifest["identity"], manifest["sha256"]) and (
            digest in (None, _digest(manifest))
        ):
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{file} is not what was built; delete {folder}")


def _digest(manifest: dict[str, Any]) -> str:
    """Over all that a manifest says, as it comes back from its file."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(manifest)), sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(identity: dict[str, Any], digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([identity, digests], sort_keys=True).encode()).hexdigest()[:16]
