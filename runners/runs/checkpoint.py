"""Checkpoints of a run: written so that a kill at any moment leaves the one before, read so that nothing executes.

``checkpoints/step-00000600/`` holds model.safetensors, optimizer.safetensors, state.json and, written last,
manifest.json with the size and the sha256 of the others. A folder appears under that name whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runners.data.atomic import flush, whole_folder
from runners.data.config import file_sha256
from runners.runs.folder import RunFolder

FORMAT = 1
KEEP = 2  # the newest; besides them the one with the lowest validation loss
RETRY_S = 10.0  # after a failed write, or the usual interval where that is shorter
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")

_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError)


class CheckpointError(Exception):
    """There are checkpoints, and none can be read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that was read whole. ``state`` is what :meth:`Checkpoints.save` was given beside the tensors."""

    path: Path
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: dict[str, Any]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the values back in place. Raises CheckpointError when they are of another model."""
        targets = model_tensors(model)
        names = {id(p): name for name, p in model.named_parameters()}
        shapes = {name: tensor.shape for name, tensor in targets.items()}
        if {name: tensor.shape for name, tensor in self.model.items()} != shapes:
            raise CheckpointError(f"{self.path} holds another model's parameters")
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(self.model[name])
        for group in optimizer.param_groups:
            for p in group["params"]:
                suffix = f"/{names[id(p)]}"
                optimizer.state[p] = {
                    key.removesuffix(suffix): value.to(p.device, copy=True)
                    for key, value in self.optimizer.items()
                    if key.endswith(suffix)
                }


class Checkpoints:
    """The checkpoints of one run. One process at a time writes: the one that holds the run's lock.

    A save copies the state and goes on training; one thread writes, flushes and renames. A write that fails is
    reported and tried again, and leaves the older checkpoints alone. As a context it waits for that thread at the end.

    Args:
        run: whose they are.
        every_s: seconds between saves.
        say: receives a line for each write, failure and unreadable file.
    """

    def __init__(self, run: RunFolder, every_s: float, say: Callable[[str], None]) -> None:
        self.run, self.folder, self.every_s, self.say = run, run.checkpoints, every_s, say
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._next = time.monotonic() + every_s
        self.saved = 0  # the step of the newest that this object wrote

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.shutdown()

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none at all. Each that is not is named to ``say``.

        Raises:
            CheckpointError: when there are some and none is whole. Nothing is deleted.
        """
        failures = []
        for path in self._paths():
            try:
                found = read(path)
                logged = self.run.log_file.stat().st_size
                if logged < found.state["log_bytes"]:
                    raise ValueError(f"the log has lost what it was made with ({self.run.log_file}, {logged:,} bytes)")
            except _UNREADABLE as error:
                failures.append(f"{path.name}: {error}")
                continue
            for failure in failures:
                self.say(f"checkpoint unreadable, {failure}; going on from {path.name}")
            return found
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(failures)}. Nothing was deleted; "
                "--fresh starts the run again"
            )
        return None

    def due(self) -> bool:
        """Whether it is time for a save; never while one is being written."""
        return time.monotonic() >= self._next and (self._pending is None or self._pending.done())

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Copy the state now and write it in the background; ``state["step"]`` names it."""
        self.wait()
        step = int(state["step"])
        self._next = time.monotonic() + self.every_s
        try:
            log_bytes = self.run.flush_log()
        except OSError as error:
            return self._failed(step, error)
        text = json.dumps({"format": FORMAT, "log_bytes": log_bytes, **state})
        files = {"model.safetensors": model_tensors(model), "optimizer.safetensors": _moments(model, optimizer)}
        copies = {  # not non_blocking: they are whole before the next step overwrites what they are taken of
            file: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        self._pending = self._writer.submit(self._write, step, copies, text)

    def wait(self) -> None:
        """Until what was handed over is written, or has failed."""
        if self._pending is not None:
            self._pending.result()

    def set_aside(self, newest: Checkpoint) -> None:
        """Rename what is newer than the ``newest`` that could be read, so that it never comes back, nor counts."""
        for path in self._paths():
            if path > newest.path:
                path.rename(path.with_name(f"unreadable-{path.name}-{time.time_ns()}"))

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _write(self, step: int, files: Mapping[str, Mapping[str, Tensor]], state: str) -> None:
        began = time.perf_counter()
        target = self.folder / f"step-{step:08}"
        partial = self.folder / f".{target.name}.{os.getpid()}"
        try:
            for left_over in self.folder.glob(".*"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            with whole_folder(partial, target):
                for name, tensors in files.items():
                    save_file(dict(tensors), partial / name)
                (partial / "state.json").write_text(state)
                manifest = {
                    name: {"bytes": (partial / name).stat().st_size, "sha256": file_sha256(partial / name)}
                    for name in FILES
                }
                (partial / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": manifest}, indent=1))
                flush(self.run.log_file)  # which the checkpoint counts on
            size = sum(file.stat().st_size for file in target.iterdir())
            self.say(f"checkpoint of step {step}: {size / 1e6:,.1f} MB in {time.perf_counter() - began:.2f} s")
            self.saved = step
            self._delete_old()
        except (OSError, SafetensorError) as error:
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        wait_s = min(RETRY_S, self.every_s)
        self._next = time.monotonic() + wait_s
        self.say(f"checkpoint of step {step} not written ({error}); training goes on, next try in {wait_s:.0f} s")

    def _delete_old(self) -> None:
        paths = self._paths()
        best = min(paths, key=_validation_loss)
        for path in paths[KEEP:]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises one of ``_UNREADABLE``; the message names the file."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
            raise ValueError(f"manifest.json: of another format; this program reads {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"manifest.json: {error}") from error
    for name in FILES:
        file, record = path / name, manifest["files"][name]
        if file.stat().st_size != record["bytes"]:
            raise ValueError(f"{name} has {file.stat().st_size:,} bytes, not {record['bytes']:,}")
        if file_sha256(file) != record["sha256"]:
            raise ValueError(f"{name} is not what was written (its sha256 differs)")
    loaders: tuple[Callable[[Path], Any], ...] = (load_file, load_file, _load_json)
    contents: list[Any] = []
    for name, load in zip(FILES, loaders, strict=True):
        try:
            contents.append(load(path / name))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{name} is not of its format: {error}") from error
    model, optimizer, state = contents
    return Checkpoint(path=path, model=model, optimizer=optimizer, state=state)


def _load_json(file: Path) -> Any:
    return json.loads(file.read_text())


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as ``exp_avg/model.norm.weight``."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {f"{key}/{names[id(p)]}": value for p, state in optimizer.state.items() for key, value in state.items()}


def _validation_loss(path: Path) -> float:
    try:
        loss = json.loads((path / "state.json").read_text())["val_loss"]
    except _UNREADABLE:
        return float("inf")
    return float("inf") if loss is None else float(loss)
