"""A run while it trains: its model, how far it is, and what its newest steps gave."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from analysis.store.schema import Metrics
from llama_variants import LlamaForCausalLM
from runners.data.batches import Corpus
from runners.planning.recipe import Recipe, TrainConfig
from runners.training import gates, memory
from runners.training.compile import eager
from runners.training.determinism import autocast, seed_step
from runners.training.optimizers.base import RecipeOptimizer
from runners.training.parallel import World


@dataclass(kw_only=True)
class Progress:
    """What a run knows besides its tensors; with them, all that a resume needs."""

    step: int = 0  # done
    micro_batch: int = 0
    compiled: bool = False
    losses: deque[float] = field(default_factory=deque)  # the newest, one a step
    rates: list[float] = field(default_factory=list)  # tokens/s at logged steps
    spikes: int = 0
    val_loss: float | None = None
    wall_time_s: float = 0.0
    first_batch: str = ""
    last_batch: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None, config: TrainConfig) -> Progress:
        """A checkpoint's, or that of a new run."""
        known = {name: stored[name] for name in cls.__dataclass_fields__} if stored else {}
        kept = max(gates.SPIKE_WINDOW, config.num_steps // 10)
        return cls(**known | {"losses": deque(known.get("losses", ()), maxlen=kept)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"losses": list(self.losses)}


class Training:
    """What ``on_step`` sees after each step; nothing here waits for the device but :meth:`read` and who calls it.

    Args:
        recipe: what is trained.
        seed: of the run.
        corpus: the recipe's.
        device: where it computes.
        world: the processes that share the run.
        say: takes a line for people.
    """

    model: LlamaForCausalLM
    optimizer: RecipeOptimizer
    progress: Progress

    def __init__(
        self, recipe: Recipe, seed: int, corpus: Corpus, device: torch.device, world: World, say: Callable[[str], None]
    ) -> None:
        self.recipe, self.seed, self.corpus = recipe, seed, corpus
        self.device, self.world, self.say = device, world, say
        self.lr = 0.0  # of the newest step
        self._pending: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of the newest steps, on the device
        self._began = self._mark = time.perf_counter()
        self._unlogged = 0  # steps since the last call of `metrics`

    @property
    def done(self) -> bool:
        """Whether the last step is made."""
        return self.progress.step == self.recipe.train.num_steps

    @property
    def wall_time_s(self) -> float:
        """Seconds so far, those before the run was stopped included."""
        return self.progress.wall_time_s + time.perf_counter() - self._began

    @property
    def data_seed(self) -> int:
        """The seed that orders the batches."""
        return self.seed + self.recipe.train.data_seed_shift

    def rows(self, step: int) -> np.ndarray:
        """The global batch (b, t) of a step, from 0: a function of the seed and the step alone."""
        config = self.recipe.train
        return self.corpus.train.batch(step, seed=self.data_seed, batch_size=config.batch_size, seq_len=config.seq_len)

    def batch(self, step: int) -> Tensor:
        """This process's rows of it, on the device."""
        rows = self.rows(step)
        if step == 0:
            self.progress.first_batch = batch_id(rows)
        batch = torch.from_numpy(rows[self.world.rows(len(rows))])
        # Only out of pinned memory does a copy to the GPU not wait for the steps before it. It is new memory each time,
        # which torch's allocator hands out again only once the copy is done.
        return (
            batch.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else batch.to(self.device)
        )

    def start_clock(self) -> None:
        """From here on time counts as that of steps."""
        self._mark = time.perf_counter()

    def record(self, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """One more step is made."""
        self._pending.append((loss, grad_norm))
        self.lr = lr
        self.progress.step += 1
        self._unlogged += 1

    def read(self) -> float | None:
        """Wait for the device; check the losses of the newest steps and keep them. Returns the newest gradient norm.

        Raises:
            RunInvalid: when one is not finite; names the step, the batch and what was first not finite.
        """
        if not self._pending:
            return None
        losses, norms = torch.stack([torch.stack(pair) for pair in self._pending], dim=1).tolist()
        self._pending.clear()
        progress = self.progress
        if (bad := gates.first_not_finite(losses, norms)) is not None:
            step = progress.step - len(losses) + bad  # from 0; no update was applied since, so it can be seen again
            raise gates.RunInvalid(self._diagnosis(step, losses[bad], norms[bad]))
        progress.spikes += gates.count_spikes(progress.losses, losses)
        progress.losses.extend(losses)
        return float(norms[-1])

    def _diagnosis(self, step: int, loss: float, norm: float) -> str:
        config, rows = self.recipe.train, self.rows(step)
        seed_step(self.seed, step, self.device, self.world.rank)
        batch = torch.from_numpy(rows).to(self.device)  # the rows of all processes: any may be to blame
        with eager(), autocast(self.device, config.precision):
            cause = gates.where_not_finite(self.model, batch.split(self.progress.micro_batch))
        places = self.corpus.train.places(
            step, seed=self.data_seed, batch_size=config.batch_size, seq_len=config.seq_len
        ).tolist()
        return (
            f"step {step + 1}: loss {loss}, gradient norm {norm}; the update was not applied; first not finite: "
            f"{cause}; batch {batch_id(rows)} of seed {self.data_seed}, training windows {places}"
        )

    def metrics(self) -> dict[str, float]:
        """What is logged of the steps since the last call. Raises RunInvalid when a gate fails."""
        norm = self.read()
        assert norm is not None
        progress, config, vocab_size = self.progress, self.recipe.train, self.recipe.model.vocab_size
        if progress.step == 1:
            gates.check_first_loss(progress.losses[0], vocab_size)
        rate = min(group["lr"] for group in self.optimizer.param_groups)
        gates.check_learning(progress.step, progress.losses, rate, vocab_size, config)
        # `read` has waited for the newest step's gradients; its update, the same at each logged step, may still run.
        now = time.perf_counter()
        step_time_s = (now - self._mark) / self._unlogged
        self._mark, self._unlogged = now, 0
        progress.rates.append(config.tokens_per_step / step_time_s)
        tokens = progress.step * config.tokens_per_step
        logged: Metrics = {
            "tokens": tokens,
            "epochs": self.corpus.train.epochs(tokens, config.seq_len),
            "train/loss": progress.losses[-1],
            "train/grad_norm": norm,
            "train/lr": self.lr,
            "train/loss_spikes": progress.spikes,
            "throughput/tokens_per_s": progress.rates[-1],
            "throughput/step_time_s": step_time_s,
            "memory/micro_batch": progress.micro_batch,
            "memory/peak_bytes": memory.peak_bytes(self.device),
        }
        return cast(dict[str, float], logged)

    def final_metrics(self) -> dict[str, float]:
        """What is logged of the whole run, after its last step."""
        progress, num_steps = self.progress, self.recipe.train.num_steps
        logged: Metrics = {
            "final/train_loss": statistics.fmean(list(progress.losses)[-max(1, num_steps // 10) :]),
            "final/tokens_per_s": statistics.median(progress.rates),
            "final/compiled": float(progress.compiled),
            "final/peak_memory_bytes": memory.peak_bytes(self.device),
            "final/wall_time_s": self.wall_time_s,
        }
        return cast(dict[str, float], logged)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of a step's time."""
        began = time.perf_counter()
        yield
        self._mark += time.perf_counter() - began

    def snapshot(self) -> dict[str, Any]:
        """The progress as a checkpoint keeps it; every loss in it was looked at."""
        self.read()
        self.progress.last_batch = batch_id(self.rows(self.progress.step - 1))
        return self.progress.to_dict() | {"wall_time_s": self.wall_time_s}


def batch_id(rows: np.ndarray) -> str:
    """A batch's name: 16 hex digits over its tokens."""
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]
