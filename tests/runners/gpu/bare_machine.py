"""A machine as those with cards are: torch, transformers and what these need; nothing else, and no network."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = ("torch", "transformers", "numpy")
CARRIED = {"pydantic", "pydantic-core", "rich", "pygments", "annotated-types", "typing-inspection"}
"""What some versions of transformers bring along; here it has to come out of the carried wheels."""
NO_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise OSError("this machine has no network")

class Local(socket.socket):
    def connect(self, address):
        refuse() if self.family != socket.AF_UNIX else super().connect(address)

socket.getaddrinfo = socket.create_connection = refuse
socket.socket = Local
"""


def closure(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed packages that these need, themselves included."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [*names]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found or name in CARRIED:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def make_machine(folder: Path) -> Path:
    """A Python in ``folder`` that has no more than such a machine; with pip, and links to what is installed here."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    words = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", words], capture_output=True, text=True, check=True).stdout.strip())
    for distribution in closure(THERE).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(sysconfig.get_path("purelib"), top)
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "no_network.py").write_text(NO_NETWORK)
    (site / "no_network.pth").write_text("import no_network\n")
    return python
