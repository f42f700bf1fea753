"""Settings that every test shares."""

import os

# Two workers with two threads each would starve one another on two cores. A worker inherits what was set for the
# process that started it, and sets it anew, unless whoever started the tests did.
if "OMP_NUM_THREADS" not in os.environ or "OMP_SET_BY_TESTS" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
    os.environ["OMP_SET_BY_TESTS"] = "yes"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where there is a card, the tests of a processor stay such: they and their children see none. Those that need one, in
# tests/cuda, are run apart, with CUDA_TESTS set (make test-cuda).
if "CUDA_TESTS" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("project")

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write this platform's file under tests/golden/")


@pytest.fixture
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder by its name and what fills it: all workers of a test run share it, and none may change it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = place / name, place / f"{name}.done"
        with FileLock(place / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made
