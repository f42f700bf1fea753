"""`model`: what a model is made of, layer by layer, and what it costs. `doctor` is what it was called."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import Context, add_json, positive, verb

if TYPE_CHECKING:
    from llama_variants import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which model, and what is set otherwise in it."""

    model: str
    plugin: list[str]
    set: list[str]
    seq_len: int | None
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("--model", default="smollm2-135m", help="a base, its YAML, or a folder of saved weights")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="blocks of your own, tried out")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="e.g. head.type=untied")
    parser.add_argument("--seq-len", type=positive, help="window in tokens for FLOPs; the model's whole context")
    add_json(parser)


def model(options: Options, context: Context) -> int:
    """Print the summary. Raises ConfigError for a model that cannot be."""
    from llama_variants.errors import ConfigError
    from runners.planning.plugins import import_plugins, try_out

    if problems := import_plugins(options.plugin, Path()):
        raise ConfigError(problems)
    delta = parse_settings(options.set)
    config = load_model(options.model).override(delta)
    if problems := try_out(config) if options.plugin else []:
        raise ConfigError(problems)
    from llama_variants.summary import summary, summary_text

    if options.as_json:
        print(json.dumps(summary(config, options.seq_len), indent=1))
    else:
        print(summary_text(config, options.seq_len))
    return 0


def load_model(name: str) -> ModelConfig:
    """The model of a base (by its name or its YAML), of a folder of saved weights, or of a preset.

    Raises ConfigError when ``name`` is none of these, and for whatever is wrong with the file.
    """
    from llama_variants.errors import ConfigError, Problem, one_of
    from runners.planning import strict_yaml
    from runners.planning.lookup import find_file

    path = Path(name)
    if path.suffix == ".yaml":
        data = strict_yaml.load(path).data
        if isinstance(data, dict) and "base" in data:
            problem = Problem(
                path=("--model",), received=f"{name}, an experiment", allowed=f"a base, as its {data['base']}"
            )
            raise ConfigError([problem])
        return _of_base(path)
    if path.is_dir():
        return _of_folder(path)
    try:
        return _of_base(find_file("base", name))
    except ConfigError:
        from llama_variants.config import PRESETS, ModelConfig

        if name in PRESETS:
            return ModelConfig.preset(name)
        known = sorted({*PRESETS, *(file.stem for file in Path("experiments/base").glob("*.yaml"))})
        if name in known:  # there, but something is wrong with it
            raise
        allowed = f"{one_of(name, known)}, a base's YAML, or a folder of saved weights"
        raise ConfigError([Problem(path=("--model",), received=repr(name), allowed=allowed)]) from None


def _of_base(file: Path) -> ModelConfig:
    from runners.planning.bases import load_base

    return load_base(file)[1].model


def _of_folder(folder: Path) -> ModelConfig:
    from transformers import AutoConfig

    from llama_variants import ModelConfig
    from llama_variants.errors import ConfigError, Problem

    try:
        return ModelConfig.of(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        received = f"{folder}: {str(error).splitlines()[0]}"
        problem = Problem(path=("--model",), received=received, allowed="a folder that transformers can load")
        raise ConfigError([problem]) from None


def parse_settings(settings: Sequence[str]) -> dict[str, object]:
    """``head.type=untied`` and the like as a delta; values are written as in a YAML.

    Raises ConfigError for text without ``=``, and for a value that is no YAML.
    """
    from llama_variants.errors import ConfigError, Problem
    from runners.planning import strict_yaml

    delta: dict[str, object] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            problem = Problem(path=("--set",), received=repr(setting), allowed="PATH=VALUE, e.g. head.type=untied")
            raise ConfigError([problem])
        *above, last = path.split(".")
        place = delta
        for part in above:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                problem = Problem(path=("--set",), received=repr(setting), allowed=f"one value for {part!r}, not two")
                raise ConfigError([problem])
            place = inner
        place[last] = strict_yaml.parse(value, f"--set {path}")
    return delta


VERB = verb(
    Options,
    model,
    add_arguments,
    prints_only=True,
    summary="show what a model is made of and what it costs",
    description="Show what a model is made of, layer by layer, and what it costs.",
    aliases=("doctor",),
    examples=(
        "model --model smollm2-135m",
        "model --model tiny --set head.type=untied --seq-len 64",
        "model --plugin my_blocks --set mlp.type=relu --json",
    ),
)
