"""Probes on finished weights: of runs, after the fact, and of anybody's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_variants import LlamaForCausalLM, load_pretrained
from llama_variants.errors import ConfigError, Problem
from llama_variants.types import bearing
from runners.data import prepare
from runners.data.batches import Corpus
from runners.data.config import Source, too_large
from runners.data.declared import file_sha256
from runners.data.held_out import held_out
from runners.data.tokenizer import make
from runners.data.tokenizer_config import PretrainedTokenizer
from runners.evaluation.subject import Subject
from runners.planning.components import PROBE, ProbeConfig
from runners.planning.recipe import Recipe
from runners.runs.evaluations import Evaluations, Measurement
from runners.runs.folder import RunFolder
from runners.runs.machine import device_name
from runners.training.determinism import set_as_trained

LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""What the logits of the windows that go through the model at a time may take, by kind of device."""
MOST_WINDOWS = 64


@dataclass(frozen=True, kw_only=True)
class Text:
    """What to evaluate on: the validation part of a source; None is the evaluated run's own."""

    name: str
    source: Source | None
    files: bool = False  # given on the spot: another text may have the same name, so it is named by its content too


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model to evaluate, and how: its recipe says the length and number of windows, and the precision."""

    title: str
    recipe: Recipe
    load: Callable[[], LlamaForCausalLM]
    tokenizer: PretrainedTokenizer
    kept: Evaluations
    judged_on: str = ""  # fingerprint of the text that a run was judged on; "" for other weights

    def corpus(self, text: Text, cache: Path, say: Callable[[str], None]) -> Corpus:
        """A text in the tokens of these weights. Raises ConfigError and DataError as the data does."""
        if text.source is None and self.judged_on:
            corpus = prepare(self.recipe.data, cache, say)
            if corpus.fingerprint != self.judged_on:
                allowed = "the files as they were, or another text: --on"
                raise ConfigError([Problem(path=("own",), received="a text that has changed since", allowed=allowed)])
            return corpus
        return held_out(text.source or self.recipe.data.source, make(self.tokenizer, lambda: (), Path()), cache, say)


def of_run(folder: RunFolder, title: str) -> Weights:
    """The weights that a finished run kept. Raises ConfigError where it has none."""
    recipe, _ = folder.config()
    if folder.checked_status().state != "FINISHED" or not folder.final.is_dir():
        state = folder.status.state
        received = f"{folder.path}: {state}" + (", without its weights" if state == "FINISHED" else "")
        raise ConfigError([Problem(path=(title,), received=received, allowed="a finished run with its weights")])
    return Weights(
        title=title,
        recipe=recipe,
        load=lambda: load_pretrained(folder.final),
        tokenizer=PretrainedTokenizer(type="pretrained", path=str(folder.final)),
        kept=Evaluations(folder.evaluations),
        judged_on=folder.status.data_fingerprint,
    )


def of_file(what: str, recipe: Recipe, root: Path, revision: str | None = None) -> Weights:
    """Weights that transformers can load: a folder, a GGUF file or a hub id; evaluated as ``recipe`` says.

    What is measured of them is kept under ``root``, by the content of the file or folder.
    """
    place = Path(what)
    gguf = place.name if what.endswith(".gguf") else None
    path = str(place.parent) if gguf else what
    model: list[LlamaForCausalLM] = []

    def load() -> LlamaForCausalLM:
        if not model:
            options: dict[str, Any] = {"revision": revision} if revision else {}
            try:
                model.append(load_pretrained(what, **options))
            except (OSError, ValueError) as error:
                if isinstance(error, ConfigError):
                    raise
                received = f"{what}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
                allowed = "weights that transformers can load"
                raise ConfigError([Problem(path=("WHAT",), received=received, allowed=allowed)]) from None
        return model[0]

    return Weights(
        title=place.name or what,
        recipe=recipe,
        load=load,
        tokenizer=PretrainedTokenizer(type="pretrained", path=path, gguf_file=gguf, revision=revision),
        kept=Evaluations(root / "weights" / _content(place, what, revision) / "evaluations"),
    )


def _content(place: Path, what: str, revision: str | None) -> str:
    """16 hex digits over weights: of a file or a folder its content, of a hub id its name and revision."""
    kinds = ("*.safetensors", "*.bin", "*.index.json", "config.json")
    files = [place] if place.is_file() else sorted(file for kind in kinds for file in place.glob(kind))
    told = [part for file in files for part in (file.name, file_sha256(file))] or [what, revision or ""]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def measure(
    weights: Weights,
    texts: Iterable[Text],
    probes: Mapping[str, ProbeConfig],
    device: torch.device,
    cache: Path,
    *,
    num_windows: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """What the ``probes`` measure of these weights on each of the ``texts``; what was measured before is read.

    Args:
        weights: the model.
        texts: on what.
        probes: type -> settings.
        device: where to compute.
        cache: of tokenized texts.
        num_windows: other than the recipe's.
        say: takes a line when something is computed.
    """
    evaluation = weights.recipe.eval
    if num_windows and num_windows != evaluation.num_windows:
        evaluation = evaluation.model_copy(update={"num_windows": num_windows})
    recipe = replace(weights.recipe, eval=evaluation)
    found: list[Measurement] = []
    model: Any = None  # whose `to` is untyped
    for text in texts:
        corpus = weights.corpus(text, cache, say)
        most = len(corpus.validation.tokens) // recipe.train.seq_len
        if recipe.eval.num_windows > most:
            received = f"{recipe.eval.num_windows:,} windows of {recipe.train.seq_len:,} tokens"
            allowed = f"at most {most:,}, which the text {text.name!r} has: --windows {most}"
            if not most:
                received, allowed = f"the text {text.name!r}", f"a text of at least {recipe.train.seq_len:,} tokens"
            raise ConfigError([Problem(path=("--windows",), received=received, allowed=allowed)])
        for name, settings in probes.items():
            label = _label(text, corpus, name, settings, num_windows if evaluation is not weights.recipe.eval else None)
            identity = _identity(recipe, corpus, name, settings) | {"label": label}
            known = weights.kept.find(name, identity)
            if known is None:
                if model is None:
                    model = weights.load()
                    model.to(device)
                    model.eval()
                    if (ids := corpus.manifest["vocab_size"]) > model.config.vocab_size:
                        raise ConfigError([too_large(ids, model.config.vocab_size)])
                set_as_trained(model, recipe.train, corpus.manifest["end_id"])
                say(f"{name} on {text.name}")
                subject = Subject(model, recipe, corpus, rows_at_a_time(recipe, device))
                metrics = PROBE[name](settings)(subject)
                made = Measurement(
                    text=label,
                    probe=name,
                    identity=identity,
                    metrics=metrics,
                    device=device_name(device),
                    items={"val/loss": _float32(subject.evaluation.windows)} if "val/loss" in metrics else {},
                )
                known = weights.kept.keep(made)
            found.append(known)
    return found


def _label(text: Text, corpus: Corpus, probe: str, settings: ProbeConfig, num_windows: int | None) -> str:
    """A text's name in keys of the tracking store, where one key stands for one way to measure."""
    parts = [text.name]
    if text.files:
        parts.append(corpus.fingerprint[:6])
    if num_windows:
        parts.append(f"w{num_windows}")
    if settings != PROBE.config_class(probe)():
        told = json.dumps(settings.identity(), sort_keys=True, default=str)
        parts.append(f"s{hashlib.sha256(told.encode()).hexdigest()[:4]}")
    return "-".join(parts)


_AS_TRAINED = ("residual_stream", "mask_documents")
"""What :func:`set_as_trained` reads of a recipe."""


def _identity(recipe: Recipe, corpus: Corpus, probe: str, settings: ProbeConfig) -> dict[str, Any]:
    """What bears on a measurement besides the weights."""
    return {
        "text": corpus.fingerprint,
        "seq_len": recipe.train.seq_len,
        "num_windows": recipe.eval.num_windows,
        "precision": recipe.train.precision,
        "probe": {"type": probe, **settings.identity()},
        "version": PROBE.version(probe),
        **bearing(recipe.train, {name: getattr(recipe.train, name) for name in _AS_TRAINED}),
    }


def _float32(values: Tensor) -> tuple[float, ...]:
    """In the fewest digits that give back what was computed in float32."""
    return tuple(float(f"{value:.9g}") for value in values.tolist())


def rows_at_a_time(recipe: Recipe, device: torch.device) -> int:
    """Windows that go through the model at a time."""
    window = recipe.train.seq_len * recipe.model.vocab_size * 4
    return max(1, min(MOST_WINDOWS, LOGITS_BYTES.get(device.type, LOGITS_BYTES["cpu"]) // window))
