"""What two recipes differ in."""

from __future__ import annotations

from typing import Any

from llama_variants import ModelConfig
from llama_variants.config import flatten
from llama_variants.registry import LAYERED
from llama_variants.summary import ranges
from runners.planning.recipe import Recipe


def difference(control: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Every path whose value differs, with both values (None where a side has no such field).

    Where either model's layers differ among themselves, layer is held against layer, and equal changes are one entry.
    """
    sides = [flatten({**recipe.resolved(), "model": _whole(recipe.model)}) for recipe in (control, other)]
    pairs = _pairs(*sides)
    if not (control.model.layers or other.model.layers):
        return pairs
    changed: dict[tuple[str, Any, Any], list[int]] = {}
    num_layers = min(control.model.num_hidden_layers, other.model.num_hidden_layers)
    for index in range(num_layers):
        layers = [flatten(_layered(recipe.model.layer(index))) for recipe in (control, other)]
        for path, (old, new) in _pairs(*layers).items():
            changed.setdefault((path, old, new), []).append(index)
    single = tuple(f"model.{family}." for family in LAYERED if family != "norm")  # the final norm is the model's own
    pairs = {path: pair for path, pair in pairs.items() if not path.startswith(single)}
    for (path, old, new), indices in changed.items():
        everywhere = len(indices) == num_layers and (not path.startswith("norm.") or f"model.{path}" in pairs)
        where = "model" if everywhere else f"model.layers.{ranges(indices)}"
        pairs[f"{where}.{path}"] = (old, new)
    return pairs


def _whole(model: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in model.resolved().items() if name != "layers"}


def _layered(layer: ModelConfig) -> dict[str, Any]:
    return {family: getattr(layer, family).resolved(layer) for family in LAYERED}


def _pairs(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    paths = [*left, *(path for path in right if path not in left)]
    return {path: (left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)}
