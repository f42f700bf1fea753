"""transformers' Auto classes know this package's models as soon as it is imported, and load them when asked for one.

Registering by ``AutoConfig.register`` takes the model's class, and with it torch and much of transformers: seconds, for
whoever needs neither. So what is entered is a lookup that registers when the name is first asked for.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "llama_variant"
_AUTO = "transformers.models.auto.configuration_auto"


class _OnDemand(dict[str, type]):
    """Configurations that were registered by name, and ours, whose registration waits until it is asked for."""

    def __contains__(self, name: object) -> bool:
        return name == MODEL_TYPE or super().__contains__(name)

    def __missing__(self, name: str) -> type:
        if name != MODEL_TYPE:
            raise KeyError(name)
        from llama_variants import hf  # registers all of its classes, and so fills the place

        return hf.LlamaVariantConfig


class _Watcher(MetaPathFinder):
    """Enters the lookup right after transformers' table of configurations is imported, or is imported anew."""

    _looking = False

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The ordinary spec of that one module, with the entry behind its execution; None for any other."""
        if fullname != _AUTO or self._looking:
            return None
        self._looking = True  # the others' answer, not this one again
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _add_to(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_to(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    if not isinstance(mapping._extra_content, _OnDemand):
        mapping._extra_content = _OnDemand(mapping._extra_content)


def enter() -> None:
    """Have ``AutoConfig`` and ``AutoModelForCausalLM`` know our models, whether transformers is imported yet or not."""
    loaded = sys.modules.get(_AUTO)
    if loaded is not None and hasattr(loaded, "CONFIG_MAPPING"):
        _add_to(loaded)
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
