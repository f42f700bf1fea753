"""Code that was shown to compute the same losses as other code, to the last digit.

`make golden-equal OLD=… NEW=…` runs the golden suite at two commits; where all losses are equal, what differs in their
digests is kept here. Runs made with the old code are then runs of the new one's stratum.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.store.stratum import Stratum

FILE = Path("experiments/golden-equal.json")


def read_proofs(file: Path = FILE) -> list[dict[str, Any]]:
    """What was proven: ``platform``, ``old`` and ``new`` (commits), ``parts``: part of the code to its two digests."""
    return list(json.loads(file.read_text())) if file.exists() else []


def proven(stratum: Stratum, file: Path = FILE) -> Stratum:
    """The stratum with each digest of code replaced by that of the newest code shown to be equal to it."""
    newer: dict[tuple[str, str], str] = {}
    for proof in read_proofs(file):
        newer |= {(part, old): new for part, (old, new) in proof["parts"].items()}

    def newest(part: str, digest: str) -> str:
        seen = {digest}
        while (after := newer.get((part, digest))) is not None and after not in seen:
            digest = after
            seen.add(digest)
        return digest

    code = {part: newest(part, digest) for part, digest in stratum.code.items()}
    changed = tuple(part for part, digest in stratum.code.items() if code[part] != digest)
    return replace(stratum, code=code, proven=tuple(sorted({*stratum.proven, *changed})))
