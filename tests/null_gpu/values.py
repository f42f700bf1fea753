"""On the null card every value is zero: what looks at values is called there, and not believed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast


def disbelieve_gates(gates: Any) -> None:
    """``gates``: the module."""

    def disbelieved(gate: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            with suppress(gates.RunInvalid):  # it is called, so that what it launches counts
                gate(*arguments)

        return call

    for name in ("preflight", "check_first_loss", "check_learning"):
        setattr(gates, name, disbelieved(getattr(gates, name)))
    gates.GradientWatch.after_backward = disbelieved(gates.GradientWatch.after_backward)


def _disbelieve_first_losses(peers: Any) -> None:
    peers.first_loss_is_fair = lambda loss, vocab_size: True


def _stand_in_for_cudnn(_: ModuleType) -> None:
    importlib.import_module("tests.null_gpu.card")


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "runners.training.gates": disbelieve_gates,
    "runners.training.compile": _stand_in_for_cudnn,
    "runners.bench.peers": _disbelieve_first_losses,
}


class _Finder(MetaPathFinder):
    """Has something done to a module as soon as it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in AFTER:
            return None
        after = AFTER.pop(fullname)
        spec = importlib.util.find_spec(fullname)
        assert spec
        loader = cast(Loader, spec.loader)
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            after(module)

        loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def disbelieve() -> None:
    """From here on in this process, which has imported nothing of it; for processes that others start."""
    sys.meta_path.insert(0, _Finder())
