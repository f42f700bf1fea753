"""training.log: one run's log as text, for people and for whoever wants to repeat the run.

A header of ``# name: value`` lines, a line for each logged step and each validation, and a footer. Losses keep every
digit. The step lines are those of the log that this one repeats (``2025-01-26 23:53:43,986 - Step 10, Loss: 10.6962,
LR: 2.20e-06``), with more behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from analysis.store.stratum import Stratum
from llama_variants import load_pretrained
from runners.data.batches import Corpus
from runners.data.token_bytes import token_bytes
from runners.planning.recipe import run_key
from runners.runs.folder import RunFolder
from runners.training.compile import attention_kernels
from runners.training.determinism import set_as_trained
from runners.training.loss import evaluate

_STEP = re.compile(r"^\S+ \S+ - Step (\d+), Loss: ([^,\s]+), LR: ([^,\s]+)")
_VALIDATION = re.compile(r"^\S+ \S+ - Validation, Step (\d+), Loss: ([^,\s]+)")
_HEAD = re.compile(r"^# ([^:]+): (.*)$")
_OWN = re.compile(r"^\S+ \S+ - |tokens/s \d+, ")  # of one run alone: when, and how fast
_COMPUTED = re.compile(r"micro-batch ([1-9]\d*), (not )?compiled")
_OWN_TIME = re.compile(r", [\d.]+ s, [\d,]+ tokens/s$")
HEADER = ("run", "command", "data", "stratum", "computed", "deterministic", "recipe")  # what making it again takes


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """What a training.log says: ``losses``, ``rates`` and, where there is any, ``validation`` by step, from 1.

    ``steps``: of the step lines, in the order in which they stand. ``lines``: the text of each step's and each
    validation's line, without time and speed, under that step and ``loss`` or ``validation``. ``repeated``: what stands
    in it more than once, in words.
    """

    header: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)
    validation: Mapping[int, float] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    lines: Mapping[tuple[int, str], str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> TrainingLog:
        """Read a log; also one that has step lines alone. Raises ValueError where there is none, or no number."""
        header: dict[str, str] = {}
        losses: dict[int, float] = {}
        rates: dict[int, float] = {}
        validation: dict[int, float] = {}
        steps: list[int] = []
        lines: dict[tuple[int, str], str] = {}
        repeated: list[str] = []

        def enter(step: int, kind: str, line: str) -> None:
            repeated.extend([f"the {kind} of step {step}"] if (step, kind) in lines else [])
            lines[step, kind] = _OWN.sub("", line)

        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if found := _STEP.match(line):
                    step = int(found[1])
                    losses[step], rates[step] = float(found[2]), float(found[3])
                    steps.append(step)
                    enter(step, "loss", line)
                elif found := _VALIDATION.match(line):
                    validation[int(found[1])] = float(found[2])
                    enter(int(found[1]), "validation", line)
                elif found := _HEAD.match(line):
                    repeated += [f"# {found[1]}"] if found[1] in header else []
                    header[found[1]] = found[2]
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        if not losses:
            raise ValueError("no line like `2025-01-26 23:53:43,986 - Step 10, Loss: 10.6962, LR: 2.20e-06`")
        return cls(
            header=header,
            losses=losses,
            rates=rates,
            validation=validation,
            steps=tuple(steps),
            lines=lines,
            repeated=tuple(repeated),
        )

    @property
    def is_ours(self) -> bool:
        """Whether it says, or once said, how to make it again."""
        return not self.header.keys().isdisjoint(HEADER)

    def check_header(self) -> None:
        """Raises ValueError for what this project would not have written."""
        if missing := [name for name in HEADER if name not in self.header]:
            raise ValueError(f"its header lacks {', '.join(missing)}")
        if self.repeated:
            raise ValueError(f"more than once in it: {', '.join(self.repeated)}")
        recipe = self.recipe
        seed = recipe.pop("seed", None)
        if f", key {run_key(recipe, seed)}" not in self.header["run"]:
            raise ValueError("its header does not agree with itself: the recipe is not the one that the key names")
        parts = self.stratum
        if missing := [name for name in ("device", "torch") if not getattr(parts, name)]:
            raise ValueError(f"stratum lacks {', '.join(missing)}")
        on_processor = parts.on_cpu
        if on_processor and not (parts.processor and parts.threads > 0):
            raise ValueError(f"stratum: {self.header['stratum']!r} names no processor and threads")
        if self.header["deterministic"] != "yes" and (on_processor or self.header["deterministic"] != "no"):
            raise ValueError(f"deterministic: {self.header['deterministic']!r}")
        _ = self._computed
        last = self.validation.get(max(self.lines)[0])
        if "final" in self.header and f"validation loss {last!r}," not in self.header["final"]:
            raise ValueError(f"final is not its last validation: {self.header['final']}, and {last!r}")

    @property
    def recipe(self) -> dict[str, Any]:
        """Identity of the recipe, and the seed."""
        recipe = json.loads(self.header["recipe"])
        if not isinstance(recipe, dict):
            raise ValueError(f"recipe: {self.header['recipe']!r}")
        return recipe

    @property
    def stratum(self) -> Stratum:
        """What it was made in; of its code a digest alone."""
        return Stratum.parse(self.header["stratum"])

    @property
    def micro_batch(self) -> int:
        """Windows that went through the model at a time."""
        return int(self._computed[1])

    @property
    def compiled(self) -> bool:
        """Whether the model was compiled."""
        return not self._computed[2]

    @property
    def _computed(self) -> re.Match[str]:
        found = _COMPUTED.fullmatch(self.header["computed"])
        if not found:
            raise ValueError(f"computed: {self.header['computed']!r}")
        return found

    @property
    def footer(self) -> dict[str, str]:
        """What the kept weights say, and how much was done, by the name of the line."""
        names = [name for name in self.header if name.startswith("final") or name in ("totals", "units")]
        return {name: _OWN_TIME.sub("", self.header[name]) for name in names}


def training_log(
    title: str, command: str, run: RunFolder, corpus: Corpus, device: torch.device, *, compiled: bool = False
) -> str:
    """The log of a run; of a finished one with a footer.

    The footer is computed anew, from the weights that the run kept: who has those can check it.

    Args:
        title: experiment, base, arm and seed in words.
        command: what makes the run.
        run: its folder.
        corpus: the run's.
        device: where to evaluate the kept weights.
        compiled: whether the model is, of a run that is not done: only a finished one says so itself.
    """
    recipe, seed = run.config()
    status, config = run.status, recipe.train
    made = status.stratum or Stratum()
    known = status.environment
    stops = [event for event in run.events()[0] if event.startswith(("KILLED", "going on"))]
    rows = run.rows()[0]
    last = rows[-1]["metrics"]
    header = {
        "run": f"{title}, key {run.key}",
        "command": command,
        "data": f"{status.data_fingerprint}, {len(corpus.train.tokens):,} training tokens",
        "stratum": str(made),
        "computed": f"micro-batch {last['memory/micro_batch']:.0f}, "
        f"{'' if last.get('final/compiled', compiled) else 'not '}compiled",
        "deterministic": "yes" if made.on_cpu or config.deterministic else "no",
        "commit": f"{known.get('commit', 'unknown')}{', changed' if known.get('dirty') == 'true' else ''}",
        "versions": ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "transformers", "numpy")),
        "hardware": known.get("processor" if made.on_cpu else "device", ""),
        "stopped": "; ".join(stops) or "no",
        "units": "losses in nats per token, validation on "
        f"{recipe.eval.num_windows:,} windows of {config.seq_len:,} tokens; times in UTC",
        "recipe": json.dumps({**recipe.identity(), "seed": seed}),
    }
    lines = [f"# {name}: {value}" for name, value in header.items()]
    for row in rows:
        lines += _lines(row)
    if "final/val_loss" not in last:
        return "\n".join(lines) + "\n"
    lines += [
        f"# final: validation loss {last['final/val_loss']!r}, bits/byte {last['final/val_bits_per_byte']!r}",
        *_by_domain(run, corpus, device),
        f"# totals: {config.num_steps:,} steps, {config.num_tokens:,} tokens, {last['final/wall_time_s']:.1f} s, "
        f"{last['final/tokens_per_s']:,.0f} tokens/s",
    ]
    return "\n".join(lines) + "\n"


def _lines(row: Mapping[str, Any]) -> list[str]:
    when = datetime.fromtimestamp(row["time"], UTC).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    step, metrics = row["step"], row["metrics"]
    lines = [
        f"{when} - Step {step}, Loss: {metrics['train/loss']!r}, LR: {metrics['train/lr']!r}, "
        f"tokens {metrics['tokens']}, tokens/s {metrics['throughput/tokens_per_s']:.0f}, "
        f"grad norm {metrics['train/grad_norm']!r}"
    ]
    if "val/loss" in metrics:
        bits = metrics["val/bits_per_byte"]
        lines.append(f"{when} - Validation, Step {step}, Loss: {metrics['val/loss']!r}, bits/byte {bits!r}")
    return lines


def _by_domain(run: RunFolder, corpus: Corpus, device: torch.device) -> list[str]:
    """The kept weights' loss on each part of the validation text; a window belongs where its first token stands."""
    recipe, _ = run.config()
    count, seq_len = recipe.eval.num_windows, recipe.train.seq_len
    split = corpus.validation
    model: Any = load_pretrained(run.final)
    model.to(device)
    set_as_trained(model, recipe.train, corpus.manifest["end_id"])
    micro_batch = int(run.rows()[0][-1]["metrics"]["memory/micro_batch"])
    windows = split.windows(count, seq_len)
    with attention_kernels(device, recipe.train.deterministic):  # as when it was trained
        losses = evaluate(model, windows, batch_size=micro_batch, precision=recipe.train.precision).windows
    places = split.fixed_places(count, seq_len)
    starts, lines = torch.from_numpy(places) * seq_len, []
    for name, domain in corpus.manifest["splits"]["validation"]["domains"].items():
        inside = (starts >= domain["start"]) & (starts < domain["start"] + domain["tokens"])
        if not inside.any():
            continue
        loss = float(losses[inside].mean())
        bits = token_bytes(corpus).bits_per_byte(loss, places[inside.numpy()], seq_len)
        lines.append(f"# final on {name}: validation loss {loss!r}, bits/byte {bits!r}, {int(inside.sum())} windows")
    return lines
