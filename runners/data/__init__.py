"""Sources to tokenizer to token shards to batch(seed, step).

The names are imported at their first use: a declaration needs neither numpy nor what builds shards.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.data.batches import Corpus
    from runners.data.config import DataConfig, DataError
    from runners.data.shards import prepare

__all__ = ["Corpus", "DataConfig", "DataError", "prepare"]

_MODULES = {"Corpus": "batches", "DataConfig": "config", "DataError": "config", "prepare": "shards"}


def __getattr__(name: str) -> object:
    """A public name, imported now."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, imported or not."""
    return sorted({*globals(), *__all__})
