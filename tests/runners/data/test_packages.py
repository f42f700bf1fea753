"""Wheels: fetched by the real pip from a local folder, and refused when anything about them is off."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from runners.data import DataError
from runners.data.packages import extract, fetch, read_texts
from tests.runners.data.wheels import cached, make_wheel, pin_of

CODE = b"def one():\n    return 1\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks in, instead of any registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetch_asks_pip_once(index: Path, tmp_path: Path) -> None:
    source = make_wheel(index, "toy", {"toy/a.py": CODE})
    pin = pin_of(source)
    wheel = fetch(pin, tmp_path / "cache")
    assert wheel.read_bytes() == source.read_bytes()
    source.unlink()
    assert fetch(pin, tmp_path / "cache") == wheel


def test_fetch_replaces_a_damaged_wheel(index: Path, tmp_path: Path) -> None:
    source = make_wheel(index, "toy", {"toy/a.py": CODE})
    wheel = fetch(pin_of(source), tmp_path / "cache")
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert fetch(pin_of(source), tmp_path / "cache").read_bytes() == source.read_bytes()


def test_fetch_refuses_another_hash(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "toy", {"toy/a.py": CODE})
    with pytest.raises(DataError, match=r"(?s)toy==1\.0.*(?i:hash)"):
        fetch("toy==1.0 sha256:" + "0" * 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_fetch_refuses_a_compiled_wheel(index: Path, tmp_path: Path) -> None:
    source = make_wheel(index, "toy", {"toy/a.py": CODE})
    pin = pin_of(source)
    source.rename(index / "toy-1.0-cp311-cp311-win32.whl")
    with pytest.raises(DataError, match=r"toy==1\.0"):
        fetch(pin, tmp_path / "cache")


def test_texts_are_sorted_and_chosen_by_extension(tmp_path: Path) -> None:
    files = {"toy/b.py": CODE, "toy/data.bin": b"\xff", "toy/a,b.rst": b"caf\xc3\xa9\r\n", "toy/B.py": b""}
    wheel = make_wheel(tmp_path, "toy", files, compression=zipfile.ZIP_DEFLATED)
    expected = [("toy/B.py", ""), ("toy/a,b.rst", "café\r\n"), ("toy/b.py", CODE.decode())]
    assert list(read_texts(wheel, (".py", ".rst"))) == expected


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_flipped_byte_changes_a_text_unnoticed(tmp_path: Path, compression: int) -> None:
    wheel = make_wheel(tmp_path, "toy", {"toy/a.py": CODE}, compression=compression)
    whole = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo("toy/a.py")
    start = member.header_offset + 30 + len(member.filename)  # 30: a zip's local header
    noticed = 0
    for place in range(start, start + member.compress_size):
        wheel.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert list(read_texts(wheel, (".py",))) == [("toy/a.py", CODE.decode())]
        except DataError as error:
            assert "toy-1.0-py3-none-any.whl: toy/a.py" in str(error)  # noqa: PT017 (either outcome is right)
            noticed += 1
    # Deflate leaves a few bits at its end that stand for nothing.
    assert noticed >= member.compress_size - (0 if compression == zipfile.ZIP_STORED else 2)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"toy/a.py": CODE + b"#"}, r"toy/a\.py is not what RECORD says"),
        ({}, r"toy/a\.py is in the wheel but not in its RECORD"),
        ({"toy/a.py": CODE, "toy/gone.py": CODE}, r"toy/gone\.py cannot be read"),
    ],
)
def test_a_wheel_must_agree_with_its_record(tmp_path: Path, record: dict[str, bytes], message: str) -> None:
    wheel = make_wheel(tmp_path, "toy", {"toy/a.py": CODE}, record=record)
    with pytest.raises(DataError, match=message):
        list(read_texts(wheel, (".py",)))


def test_text_must_be_utf8(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "toy", {"toy/a.py": b"\xff"})
    with pytest.raises(DataError, match=r"toy/a\.py is not UTF-8"):
        list(read_texts(wheel, (".py",)))


def test_extract_gives_the_checked_file_and_mends_a_damaged_copy(tmp_path: Path) -> None:
    pin = cached(tmp_path, "toy", {"toy/model.gguf": b"weights"})
    file = extract(pin, "model.gguf", tmp_path)
    file.write_bytes(b"damaged")
    assert extract(pin, "model.gguf", tmp_path).read_bytes() == b"weights"


def test_extract_wants_exactly_one_file(tmp_path: Path) -> None:
    pin = cached(tmp_path, "toy", {"toy/a.py": CODE, "toy/b.py": CODE})
    with pytest.raises(DataError, match="2 files that end in"):
        extract(pin, ".py", tmp_path)
