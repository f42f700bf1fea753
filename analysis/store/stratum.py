"""Where and with what code a run was made: what shifts its bits without being part of its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Runs of one stratum can be compared; those of one recipe and seed are equal too, on hardware that repeats.

    ``device``: the GPU's name, or ``cpu-`` and the architecture. ``processor`` and ``threads``: of a CPU, its vendor
    and instruction set, and how many threads. ``torch``: its version. ``code``: a digest of the meaning of the code
    behind each part of the recipe: ``training``, ``model``, ``data``, ``norm.rms`` … Two recipes share most of them.
    ``definitions``: what these are made of, for messages: ``module:name`` to a digest. ``proven``: parts whose code was
    another when the run was made, with equal losses of the whole golden suite.
    """

    device: str = ""
    torch: str = ""
    processor: str = ""
    threads: int = 0
    code: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict, compare=False)
    proven: tuple[str, ...] = field(default=(), compare=False)

    @property
    def on_cpu(self) -> bool:
        """Whether it is a processor's, which repeats its bits, and which other work slows."""
        return self.device.startswith("cpu")

    @property
    def code_digest(self) -> str:
        """8 hex digits over all of ``code``; of a log that kept no more than these, these."""
        if set(self.code) == {"*"}:
            return self.code["*"]
        return hashlib.sha256(json.dumps(sorted(self.code.items())).encode()).hexdigest()[:8]

    def facets(self, by_part: bool = True) -> dict[str, str]:
        """All by name. A part of the code that only one of two runs has sets them not apart."""
        place = {"device": self.device, "processor": self.processor, "torch": self.torch}
        place |= {"threads": str(self.threads)} if self.on_cpu else {}
        code = {f"code of {name}": digest for name, digest in self.code.items()}
        return place | (code if by_part else {"code": self.code_digest})

    @property
    def has_parts(self) -> bool:
        """Whether it is known part by part; a line of text keeps a digest of the whole code alone."""
        return "*" not in self.code

    def differs(self, other: Stratum) -> list[str]:
        """Names of the facets in which runs of the two cannot be compared."""
        mine, theirs = facets([self, other])
        return [name for name, value in mine.items() if theirs.get(name, value) != value]

    def changed_files(self, other: Stratum) -> list[str]:
        """Files whose meaning is another here than there, with the definitions: ``blocks/norm.py (RMSNorm)``."""
        names: dict[str, list[str]] = {}
        for part in sorted({*self.definitions, *other.definitions}):
            if self.definitions.get(part) != other.definitions.get(part):
                module, _, name = part.partition(":")
                names.setdefault(module.replace(".", "/") + ".py", []).extend([name] if name else [])
        return [f"{file} ({', '.join(found)})" if found else file for file, found in names.items()]

    def __str__(self) -> str:
        """One line: ``device=cpu-x86_64 processor=… threads=1 torch=2.13.0 code=12ab34cd``."""
        parts = {"device": self.device, "processor": self.processor, "threads": self.threads, "torch": self.torch}
        return " ".join(f"{name}={value}" for name, value in (parts | {"code": self.code_digest}).items() if value)

    def to_json(self) -> str:
        """As the tracking store and kept results have it: without the definitions."""
        return json.dumps(asdict(replace(self, definitions={})))

    @classmethod
    def parse(cls, text: str) -> Stratum:
        """From :meth:`to_json`, or from the one line, which keeps a digest of the code alone.

        Raises:
            ValueError: for any other text.
        """
        return _parse(text)


def facets(strata: Sequence[Stratum]) -> list[dict[str, str]]:
    """The facets of each, by which they are compared: part by part, where all of them are known so."""
    by_part = all(stratum.has_parts for stratum in strata)
    return [stratum.facets(by_part) for stratum in strata]


@lru_cache(maxsize=4096)
def _parse(text: str) -> Stratum:
    try:
        if text.startswith("{"):
            record = json.loads(text)
            return Stratum(**record | {"proven": tuple(record.get("proven", ()))})
        parts: dict[str, Any] = dict(part.split("=", 1) for part in text.split())
        code, threads = parts.pop("code", ""), int(parts.pop("threads", 0))
        return Stratum(**parts, threads=threads, code={"*": code} if code else {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{text!r} is no stratum ({error})") from None
