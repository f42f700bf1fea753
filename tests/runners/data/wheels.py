"""Wheels made by hand, the same bytes on every machine, put where `fetch` looks first: no network."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    record: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,  # compressed bytes depend on the zlib at hand
) -> Path:
    """Write NAME-1.0-py3-none-any.whl; ``record`` replaces what RECORD vouches for (by default, the files)."""
    info = f"{name}-1.0.dist-info"
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()}
    files |= {f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    vouched = files if record is None else {**record, **{k: v for k, v in files.items() if k.startswith(info)}}
    lines = [f'"{path}",sha256={_digest(content)},{len(content)}\n' for path, content in vouched.items()]
    files |= {f"{info}/RECORD": "".join([*lines, f"{info}/RECORD,,\n"]).encode()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content, compression)  # ZipInfo: a fixed date
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    wheel.write_bytes(packed.getvalue())
    return wheel


def cached(cache: Path, name: str, files: Mapping[str, bytes]) -> str:
    """Put a wheel into ``cache`` as if it had been fetched; returns its pin."""
    cache.mkdir(parents=True, exist_ok=True)
    wheel = make_wheel(cache, name, files)
    folder = cache / "wheels" / digest_of(wheel)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return pin_of(wheel.replace(folder / wheel.name))


def pin_of(wheel: Path) -> str:
    """The pin that names ``wheel``."""
    return f"{wheel.name.partition('-')[0]}==1.0 sha256:{digest_of(wheel)}"


def digest_of(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
