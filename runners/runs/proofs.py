"""Code that was shown to compute the same losses as other code, to the last digit.

`make golden-equal OLD=… NEW=…` runs the golden suite at two commits; where all losses are equal, what differs in their
digests is kept here. Runs made with the old code are then runs of the new one's stratum, on the platform where that was
shown: other kernels may tell apart what these do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from analysis.store.stratum import Stratum
from llama_variants.errors import ConfigError, Problem, StrictModel

FILE = Path("experiments/golden-equal.json")


class Proof(StrictModel):
    """Two commits whose golden losses are equal. ``parts``: part of the code to its digests, the old and the new."""

    platform: str
    losses: int
    old: str
    new: str
    parts: dict[str, list[str]]


_PROOFS = TypeAdapter(list[Proof])


def read_proofs(file: Path = FILE) -> list[Proof]:
    """What was proven, in the order in which it was. Raises ConfigError for a damaged file."""
    if not file.exists():
        return []
    try:
        return _PROOFS.validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        what = str(error).splitlines()[-2].strip() if isinstance(error, ValidationError) else str(error.strerror)
        problem = Problem(
            path=(), received=f"{file}: {what}", allowed="what `make golden-equal` wrote, or no such file"
        )
        raise ConfigError([problem]) from None


def proven(stratum: Stratum, file: Path = FILE) -> Stratum:
    """The stratum with each digest of code replaced by the newest of those shown to be equal to it on its platform."""
    place = [stratum.device, *([stratum.processor] if stratum.processor else [])]
    platform = "-".join([*place, f"torch{stratum.torch.partition('+')[0]}"])
    pairs: dict[str, list[tuple[str, str]]] = {}
    for proof in read_proofs(file):
        if proof.platform == platform:
            for part, (old, new) in proof.parts.items():
                pairs.setdefault(part, []).append((old, new))
    code = {part: _newest(digest, tuple(pairs.get(part, ()))) for part, digest in stratum.code.items()}
    changed = {part for part, digest in stratum.code.items() if code[part] != digest}
    return replace(stratum, code=code, proven=tuple(sorted({*stratum.proven, *changed})))


@lru_cache
def _newest(digest: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Of all digests that pairs join to this one, however many lie between, the new one of the last pair."""
    joined, before = {digest}, 0
    while len(joined) > before:
        before = len(joined)
        for pair in pairs:
            joined |= set(pair) if joined & set(pair) else set()
    return next((new for _, new in reversed(pairs) if new in joined), digest)
