"""``python3 -m runners.gpu.bare ARGUMENTS``: an environment out of the carried wheels, then ``python -m runners gpu``.

For a machine with torch, transformers and no network, in a folder that ``gpu-pack`` built. The standard library alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from runners.gpu.manifest import faults

ENVIRONMENT = Path(".venv")
WHEELS = Path("wheels")


def main(arguments: list[str]) -> int:
    """The exit code where nothing could be started; else this process becomes the other one."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whatever Python the machine has)
        return _refuse(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}; name another with PYTHON=")
    try:
        damaged = faults(Path(), "pack.json")
    except ValueError as error:
        return _refuse(f"{error}; start it in a folder that `make gpu-pack` built")
    if damaged:
        return _refuse("the folder is not what `make gpu-pack` built: " + "; ".join(damaged[:5]))
    if lacks := [name for name in ("torch", "transformers", "pip") if importlib.util.find_spec(name) is None]:
        return _refuse(f"{sys.executable} lacks {', '.join(lacks)}; name a Python that has them with PYTHON=")
    python = ENVIRONMENT / "bin/python"
    done = ENVIRONMENT / ".carried"
    mine = sys.executable + "\n" + Path("pack.json").read_text()
    if not (python.exists() and done.exists() and done.read_text() == mine):  # of another Python, or another pack
        print("installing the carried wheels into .venv", flush=True)
        _make(python)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        # What the machine has already, in a version that will do, pip leaves as it is.
        given = ["--no-index", "--find-links", str(WHEELS), "-r", str(WHEELS / "requirements.txt")]
        if subprocess.run([*pip, *given]).returncode:
            carried = " and ".join(json.loads(Path("pack.json").read_text())["pythons"])
            text = f"pip says above what could not be installed; the wheels are for Python {carried}, this is"
            return _refuse(f"{text} {sys.version.split()[0]} (make gpu-pack ARGS='--python 3.N')", 1)
        done.write_text(mine)
    command = [str(python), "-m", "runners", "gpu", *arguments]
    os.execv(command[0], command)


def _make(python: Path) -> None:
    """An environment that sees all that this Python sees, torch above all, whether it is the system's or a venv's."""
    venv.create(ENVIRONMENT, system_site_packages=True, clear=True, with_pip=False)
    text = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", text], capture_output=True, text=True, check=True).stdout.strip()
    seen = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sorted(seen))
    Path(site, "machine.pth").write_text(lines)


def _refuse(text: str, code: int = 2) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
