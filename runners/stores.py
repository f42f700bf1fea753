"""The tracking store: the first contact with it, how long it is waited for, and a local one's database.

`tracking.py` writes runs into it.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from analysis.store import address
from llama_variants.errors import ConfigError, Problem

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVER_S, DATABASE_S = 5.0, 30.0  # for a first answer; a new database on a server gets its tables then
_FOLDER = "mlartifacts"  # beside a local database
T = TypeVar("T")


def connect(uri: str) -> MlflowClient:
    """A client of the store at ``uri``; the first contact with a new database is one process's alone.

    Raises ConnectionError where it does not answer, or not in time.
    """
    address.set_defaults()
    from mlflow import MlflowClient

    def contact(uri: str = uri) -> MlflowClient:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        return client

    try:
        if database := address.database(uri):
            with alone(uri):  # several at once would each try to create the schema, some as soon as there is a client
                if not database.exists():
                    _create(database, contact)
                return contact()
        return within(SERVER_S if uri.lower().startswith("http") else DATABASE_S, contact)
    except Exception as error:  # of MLflow, of the database's driver, or none is installed
        raise ConnectionError(str(error)) from error


def _create(database: Path, contact: Callable[[str], object]) -> None:
    """Make a local store beside its place and move it there.

    MLflow makes its tables one by one, and opens no database that has some of them. A process that is killed meanwhile
    leaves none in that place.
    """
    folder = database.absolute().parent / f".{database.name}.new"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: this one alone is here
    folder.mkdir()
    contact(f"sqlite:///{folder / database.name}")
    (folder / database.name).replace(database)
    shutil.rmtree(folder)


def within(seconds: float, function: Callable[[], T]) -> T:
    """What ``function`` returns. After so many seconds TimeoutError; then it is left to a thread that ends with us."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():
            raise
        raise TimeoutError(f"no answer in {seconds:g} s") from None


def checked(uri: str) -> str:
    """The address. Raises ConfigError for one that can be none, without asking it."""
    if allowed := address.wrong(uri):
        raise ConfigError([problem(uri, allowed)])
    return uri


def problem(received: str, allowed: str) -> Problem:
    """What is wrong with the address, without its password."""
    return Problem(path=(address.VARIABLE,), received=address.shown(received), allowed=allowed)


def of_the_store(error: Exception) -> bool:
    """Whether the store is at fault, or the way to it."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    return isinstance(error, (MlflowException, RequestException, ConnectionError, TimeoutError))


def alone(uri: str) -> AbstractContextManager[Any]:
    """Keeps other processes of this program out of a local database; a server minds itself."""
    database = address.database(uri)
    return FileLock(f"{database}.lock") if database else nullcontext()


def artifacts(uri: str) -> str | None:
    """Where a local store's files go: beside the database. A server has its own place, and so has whoever names one.

    Not MLflow's ./mlruns, which would have it take that folder for the store where none is named.
    """
    database = address.database(uri)
    return (database.absolute().parent / _FOLDER).as_uri() if database else None


def move_artifacts(uri: str, experiment_id: str, stored: str) -> None:
    """MLflow keeps absolute places: after a project was moved or copied, its files go where the project is now."""
    here, database = artifacts(uri), address.database(uri)
    if here is None or database is None or stored == here or not stored.endswith(f"/{_FOLDER}"):
        return
    with closing(sqlite3.connect(database, timeout=60)) as opened, opened:
        opened.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment_id))
        opened.execute(
            "UPDATE runs SET artifact_uri = :here || substr(artifact_uri, length(:there) + 1) "
            "WHERE experiment_id = :id AND substr(artifact_uri, 1, length(:there) + 1) = :there || '/'",
            {"here": here, "there": stored, "id": experiment_id},
        )
