"""Which model is meant on the command line, and what is set otherwise in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from llama_variants import ConfigError, ModelConfig
from llama_variants.config import PRESETS
from llama_variants.errors import Problem, one_of
from runners.planning import strict_yaml
from runners.planning.bases import find_file, load_base


def load_model(name: str) -> ModelConfig:
    """The model of a base (by its name or its YAML), of a folder of saved weights, or of a preset.

    Raises ConfigError when ``name`` is none of these, and for whatever is wrong with the file.
    """
    path = FilePath(name)
    if path.suffix == ".yaml":
        data = strict_yaml.load(path).data
        if isinstance(data, dict) and "base" in data:
            raise ConfigError([Problem(("--model",), f"{name}, an experiment", f"a base, as its {data['base']}")])
        return load_base(path)[1].model
    if path.is_dir():
        from transformers import AutoConfig

        try:
            return ModelConfig.of(AutoConfig.from_pretrained(path))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            received = f"{name}: {str(error).splitlines()[0]}"
            raise ConfigError([Problem(("--model",), received, "a folder that transformers can load")]) from None
    try:
        return load_base(find_file("base", name))[1].model
    except ConfigError:
        if name in PRESETS:
            return ModelConfig.preset(name)
        known = sorted({*PRESETS, *(file.stem for file in FilePath("experiments/base").glob("*.yaml"))})
        if name in known:  # there, but something is wrong with it
            raise
        allowed = f"{one_of(name, known)}, a base's YAML, or a folder of saved weights"
        raise ConfigError([Problem(("--model",), repr(name), allowed)]) from None


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``head.type=untied`` and the like as a delta; values are written as in a YAML.

    Raises ConfigError for text without ``=``, and for a value that is no YAML.
    """
    delta: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError([Problem(("--set",), repr(setting), "PATH=VALUE, e.g. head.type=untied")])
        *above, last = path.split(".")
        place = delta
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError([Problem(("--set",), repr(setting), f"one value for {part!r}, not two")])
        place[last] = strict_yaml.parse(value, f"--set {path}")
    return delta
