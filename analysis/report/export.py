"""Run the notebooks on an experiment, and keep them as pages that need no network."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.report.explore import EXPERIMENT_VARIABLE
from analysis.store import address

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TIMEOUT_S = 300


class NotebookError(RuntimeError):
    """A cell that failed: which notebook, which cell, and what it said."""


def execute(notebook: Path, experiment: str, *, tracking_uri: str | None = None) -> Any:
    """The notebook with its outputs, run on ``experiment`` by this very interpreter.

    Args:
        notebook: the .ipynb file, which is left as it is.
        experiment: its name in the tracking store.
        tracking_uri: the store; None is :func:`analysis.store.address.tracking_uri`.

    Raises:
        ImportError: when the extra ``[notebooks]`` is not installed.
        NotebookError: when a cell fails, or takes more than ``TIMEOUT_S``.
    """
    try:
        import nbformat
        from ipykernel.kernelspec import get_kernel_dict
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError
    except ImportError as error:
        raise ImportError(f"{error}; notebooks take the extra [notebooks]: pip install -e '.[notebooks]'") from error

    class ThisInterpreter(KernelSpecManager):
        """Whatever kernels are installed for the user or the machine, the notebook runs on this Python."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    variables = {
        EXPERIMENT_VARIABLE: experiment,
        "MLFLOW_TRACKING_URI": absolute(tracking_uri or address.tracking_uri()),
    }
    book = nbformat.read(notebook, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=ThisInterpreter())  # on the loopback device
    client = NotebookClient(
        book,
        km=manager,
        timeout=TIMEOUT_S,
        resources={"metadata": {"path": str(notebook.parent)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # of errors only; it warns of other users of this machine
    )
    try:
        _run(lambda: client.execute(env={**os.environ, **variables}), manager)
    except CellTimeoutError:
        raise NotebookError(f"{notebook.name}: a cell took more than {TIMEOUT_S} s") from None
    except CellExecutionError as error:
        failed = next(
            i for i, cell in enumerate(book.cells) if any(o.output_type == "error" for o in cell.get("outputs", []))
        )
        raise NotebookError(f"{notebook.name}, cell {failed + 1}: {error.ename}: {error.evalue}") from error
    return book


def _run(work: Callable[[], object], manager: KernelManager) -> None:
    """Do the ``work`` of a kernel, which does not outlive this, however it is left.

    In a thread of its own: in the first one nbclient would take the signals for itself.
    """
    outcome: Future[object] = Future()

    def into() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=into, daemon=True)
    thread.start()
    try:
        outcome.result()
    finally:
        while True:
            process = getattr(manager.provisioner, "process", None)
            if process and process.poll() is None:
                process.kill()
                process.wait()
            if not thread.is_alive():
                break
            thread.join(0.2)


def export(experiment: str, out_dir: Path, *, tracking_uri: str | None = None) -> dict[str, Path]:
    """Run every notebook on ``experiment`` and write ``out_dir/notebooks/NAME.html``.

    Arguments and errors as for :func:`execute`. Each page holds its figures; it is written beside its place and then
    renamed into it.
    """
    files = {}
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        book = execute(notebook, experiment, tracking_uri=tracking_uri)
        file = out_dir / "notebooks" / f"{notebook.stem}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.tmp")
        unfinished.write_text(_page(book, f"{notebook.stem}: {experiment}"), encoding="utf-8")
        unfinished.replace(file)
        files[f"notebook {notebook.stem}"] = file
    return files


def _page(book: Any, title: str) -> str:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", embed_images=True)
    page, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": title}})
    # Its scripts fetch typesetters of formulas and diagrams from the network; there are none here.
    return re.sub(r"<script\b.*?</script>", "", str(page), flags=re.DOTALL)


def absolute(uri: str) -> str:
    """The store's address from any folder: a kernel works where its notebook lies."""
    database = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(database).absolute()}" if database != uri else uri
