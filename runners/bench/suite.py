"""`python -m runners bench`: measure, print a table, and keep the record and its figure."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llama_variants import ModelConfig
from llama_variants.errors import ConfigError, Problem, one_of
from runners.bench.blocks import AGAIN, blocks, scaling, variants
from runners.bench.contenders import CONTENDERS, REFERENCE
from runners.bench.decode import decode
from runners.bench.paths import paths, side_by_side
from runners.bench.peers import peers
from runners.data.atomic import write_atomically
from runners.data.shards import prepare
from runners.planning.bases import load_base
from runners.planning.lookup import find_file
from runners.planning.recipe import Recipe
from runners.runs.environment import environment
from runners.runs.machine import device_name
from runners.training.compile import keep_compiled_in, wants_compile

WHAT = {
    "peers": "this project beside transformers, litgpt and torchtitan",
    "blocks": "every block beside the control, and the control beside itself",
    "scaling": "tokens/s and memory against micro-batch, window and layers",
    "decode": "prefill, decode and key/value cache beside the control, the price at inference",
    "paths": "reading batches, saving and restoring checkpoints",
    "jobs": "runs per hour: one to a core against one after another (CPU)",
}


KEPT = (
    *("python", "torch", "transformers", "processor", "cores", "memory_bytes"),
    *("cuda", "cudnn", "driver", "device_memory_bytes", "commit", "dirty"),
)
"""Of a run's environment: a record is for showing, so it names no machine and no path."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure, on what, and how long."""

    what: str
    device: torch.device
    base: str | None = None
    rounds: int = 5
    least_s: float = 1.0
    seq_len: int | None = None
    tokens: int | None = None  # of a step
    only: tuple[str, ...] = ()
    compile_mode: str = "auto"
    num_steps: int = 400  # of each run of `jobs`
    batches: tuple[int, ...] = ()  # of `decode`: rows; by the device when empty
    contexts: tuple[int, ...] = ()  # of `decode`: tokens; up to the model's longest when empty


def bench(request: BenchRequest, cache: Path, folder: Path, console: Console) -> dict[str, Any]:
    """Carry out ``request``; the record is printed as a table, and kept as JSON with a figure in ``folder``.

    Raises:
        ConfigError: for a base, a name or a size that cannot be.
    """
    recipe, base = _recipe(request)
    device, config = request.device, recipe.train
    if request.what != "peers":  # whose start is timed from the very beginning
        keep_compiled_in(cache / "inductor")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    compiled = wants_compile(request.compile_mode, device)
    record: dict[str, Any] = {
        "what": request.what,
        "base": base,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "seq_len": config.seq_len,
        "tokens_per_step": config.tokens_per_step,
        "rounds": request.rounds,
        "compiled": compiled,
        "date": time.strftime("%Y-%m-%d"),
    }

    console.width = max(console.width, 135)  # into a file too

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    steps = f", {config.tokens_per_step:,} tokens a step in windows of {config.seq_len:,}"
    say(
        f"{request.what}: {WHAT[request.what]}; {base} on {record['device']} ({record['threads']} threads), "
        f"{config.precision}{'' if request.what == 'decode' else steps}"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        if request.what == "peers":
            names = _names(request, device)
            record |= peers(recipe, device, names, request.rounds, request.least_s, Path(scratch), say)
        elif request.what == "blocks":
            only = _chosen(request.only, [name for name, _ in variants(recipe.model)])
            record |= blocks(recipe, device, only, request.rounds, request.least_s, compiled, say)
        elif request.what == "scaling":
            record |= scaling(recipe, device, request.rounds, request.least_s, compiled, say)
        elif request.what == "decode":
            points = [(batch, context) for context in _contexts(request, recipe) for batch in _batches(request)]
            models = _priced(request, recipe)
            record |= decode(recipe, models, device, points, request.rounds, request.least_s, compiled, say)
        else:
            corpus = prepare(recipe.data, cache, say=lambda text: say(f"data: {text}"))
            if request.what == "paths":
                record |= paths(recipe, corpus, device, Path(scratch), request.rounds, say)
            else:
                threads = torch.get_num_threads()
                record |= side_by_side(recipe, cache, Path(scratch), threads, request.num_steps, request.rounds, say)
    around = environment(device)
    record["environment"] = {key: around[key] for key in KEPT if key in around} | _versions()
    if "rows" in record:
        console.print(_table(record))
    for name, shares in record.get("kernels", {}).items():
        told = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items() if share >= 0.005)
        say(f"time of {name}: {told}")
    _keep(record, folder, say)
    return record


def _recipe(request: BenchRequest) -> tuple[Recipe, str]:
    base = request.base or ("tiny" if request.device.type == "cpu" else "smollm2-135m")
    _, recipe = load_base(find_file("base", base))
    train = recipe.train
    seq_len = request.seq_len or train.seq_len
    tokens = request.tokens or (train.tokens_per_step if train.tokens_per_step % seq_len == 0 else seq_len)
    precision = "float32" if request.device.type == "cpu" else train.precision  # bfloat16 is many times slower there
    stream = "float32" if precision == "float32" else train.residual_stream
    train = train.model_copy(
        update={"seq_len": seq_len, "tokens_per_step": tokens, "precision": precision, "residual_stream": stream}
    )
    problems = list(train.problems())
    if seq_len > recipe.model.max_position_embeddings:
        problems.append(
            Problem(
                path=("--seq-len",), received=str(seq_len), allowed=f"at most {recipe.model.max_position_embeddings}"
            )
        )
    if request.what == "jobs" and request.device.type != "cpu":
        problems.append(
            Problem(path=("--device",), received=str(request.device), allowed="cpu: a card takes one run at a time")
        )
    if request.rounds < 2:
        problems.append(
            Problem(path=("--rounds",), received=str(request.rounds), allowed="2 or more: one shows no spread")
        )
    longest = recipe.model.max_position_embeddings
    problems += [
        Problem(path=("--context",), received=str(context), allowed=f"2 to {longest}")
        for context in request.contexts
        if not 2 <= context <= longest
    ]
    if problems:
        raise ConfigError(problems)
    return replace(recipe, train=train), base


def _contexts(request: BenchRequest, recipe: Recipe) -> tuple[int, ...]:
    longest = recipe.model.max_position_embeddings
    return request.contexts or tuple(sorted({max(2, longest // part) for part in (4, 2, 1)}))


def _batches(request: BenchRequest) -> tuple[int, ...]:
    return request.batches or ((1, 8) if request.device.type == "cpu" else (1, 8, 64))


def _priced(request: BenchRequest, recipe: Recipe) -> dict[str, ModelConfig]:
    """What `decode` sets beside the control: the control again, and ``only``, or what bears on the cache."""
    known = dict(variants(recipe.model))
    cached = [f"attention={name}" for name in ("mqa", "gqa", "mha", "sliding_window")]
    names = _chosen(request.only, list(known)) or [name for name in cached if name in known]
    return {name: known[name] for name in dict.fromkeys([AGAIN, *names])}


def _versions() -> dict[str, str]:
    """Of the peers that are installed."""
    needed = [contender.needs for contender in CONTENDERS if contender.needs and not contender.missing]
    return {name: importlib.metadata.version(name) for name in needed}


def _names(request: BenchRequest, device: torch.device) -> list[str]:
    """The contenders: those named, else all; on a processor none that compiles, which takes minutes."""
    known = [contender.name for contender in CONTENDERS]
    if request.only:
        return [*_chosen(request.only, known)]
    return [c.name for c in CONTENDERS if device.type != "cpu" or not c.compiles]


def _chosen(only: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for name in only:
        if name not in known:
            problem = Problem(path=("--only",), received=repr(name), allowed=one_of(name, dict.fromkeys(known)))
            raise ConfigError([problem])
    return only


SHARES = {"MFU PaLM": "mfu_palm", "causal": "mfu_causal", "of roofline": "of_roofline"}


def _table(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    what, rows = record["what"], record["rows"]
    shares = [name for name, key in SHARES.items() if any(row.get(key) for row in rows)]  # of a card that is known
    columns = {
        "peers": (
            "contender",
            "tokens/s [95 % interval]",
            f"x {REFERENCE}",
            *shares,
            "of ceiling",
            "memory",
            "windows",
            "first step",
        ),
        "blocks": ("variant", "tokens/s [95 % interval]", "x control", "parameters"),
        "scaling": ("", "", "tokens/s [95 % interval]", "memory", "parameters"),
        "decode": (
            "variant",
            "batch",
            "context",
            "prefill",
            "decode tokens/s [95 %]",
            "x control",
            "cache",
            "formula",
            "of limit",
        ),
    }[what]
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        speed = f"{row['tokens_per_s']:,.0f} [{row['low']:,.0f}, {row['high']:,.0f}]"
        times = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if "ratio" in row else ""
        if what == "peers":
            table.add_row(
                row["name"],
                speed,
                times,
                *(f"{100 * row[SHARES[name]]:.1f} %" for name in shares),
                f"{100 * row['of_ceiling']:.0f} %",
                _bytes(row["peak_memory_bytes"]),
                str(row["micro_batch"]),
                f"{row['startup_s']:.1f} s",
            )
        elif what == "blocks":
            table.add_row(row["name"], speed, times, f"{row['params']:,}")
        elif what == "decode":
            table.add_row(
                row["name"],
                str(row["batch"]),
                f"{row['context']:,}",
                f"{row['prefill_tokens_per_s']:,.0f}",
                speed,
                times,
                f"{row['kv_bytes'] / 1024:,.0f} KiB",
                f"{row['kv_bytes_by_formula'] / 1024:,.0f} KiB",
                f"{100 * row['of_bandwidth']:.0f} %" if "of_bandwidth" in row else "–",
            )
        else:
            table.add_row(row["axis"], str(row["point"]), speed, _bytes(row["peak_memory_bytes"]), f"{row['params']:,}")
    return table


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _keep(record: Mapping[str, Any], folder: Path, say: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{record['what']}-{record['base']}-{record['device'].replace(' ', '-')}"
    file = stem.with_name(stem.name + ".json")
    write_atomically(file, json.dumps(record, indent=1, default=str) + "\n")
    say(f"written: {file}")
    try:
        from analysis.report.bench_figure import figure
    except ModuleNotFoundError as error:  # a machine with a card may lack it; the record is what counts
        say(f"no figure: {error.name} is not installed")
        return
    if (drawing := figure(record)) is not None:
        picture = file.with_suffix(".png")
        drawing.savefig(picture, dpi=150)
        say(f"written: {picture}")
