"""Sources to tokenizer to token shards to batch(seed, step)."""

from runners.data.batches import Corpus
from runners.data.config import DataConfig, DataError
from runners.data.shards import prepare

__all__ = ["Corpus", "DataConfig", "DataError", "prepare"]
