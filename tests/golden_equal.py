"""`make golden-equal OLD=… NEW=…`: whether two commits compute the same losses, to the last digit.

Runs the golden suite at both, each in a checkout of its own. Where all losses that both have are equal, what differs in
the digests of their code goes into experiments/golden-equal.json: verdicts then treat the two as one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from runners.data.atomic import write_atomically
from runners.runs.proofs import FILE, Proof, read_proofs

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """0 where the losses are equal, 1 where they are not, 2 where a commit has no golden suite."""
    parser = argparse.ArgumentParser(prog="make golden-equal", description=__doc__)
    parser.add_argument("old", help="a commit: what runs were made with")
    parser.add_argument("new", nargs="?", default="HEAD", help="a commit: what should compute the same (default HEAD)")
    parser.add_argument("--into", type=Path, default=ROOT / FILE, help="the file of proofs")
    options = parser.parse_args(arguments)
    commits = {side: _commit(getattr(options, side)) for side in ("old", "new")}
    if None in commits.values():
        print(f"error: no such commit: {options.old if commits['old'] is None else options.new}", file=sys.stderr)
        return 2
    records = {side: _record(str(commit)) for side, commit in commits.items()}
    for side, record in records.items():
        if record is None:
            print(
                f"error: the golden suite cannot be run at {commits[side]}; it came with this command", file=sys.stderr
            )
            return 2
    old, new = records["old"], records["new"]
    shared = [name for name in old["losses"] if name in new["losses"]]
    apart = [name for name in shared if old["losses"][name] != new["losses"][name]]
    for name in apart:
        pairs = zip_longest(old["losses"][name], new["losses"][name])
        step, (a, b) = next((i, pair) for i, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
        print(f"{name}: {a!r} at {commits['old']}, {b!r} at {commits['new']}, from step {step} on")
    if apart or not shared:
        print(f"NOT EQUAL: {len(apart)} of {len(shared)} on {new['platform']}; nothing was written")
        return 1
    parts = {}  # of what was compared: code that no shared recipe executes is proven by nothing
    for name in shared:
        now = new["code"][name]
        parts |= {part: [was, now[part]] for part, was in old["code"][name].items() if now.get(part, was) != was}
    gone = sorted(set(old["losses"]) - set(shared))
    print(
        f"equal to the last digit: {len(shared)} of {len(shared)} on {new['platform']}; code that differs: "
        f"{', '.join(sorted(parts)) or 'none'}"
        + (f"; not compared, no longer there: {', '.join(gone)}" if gone else "")
    )
    if parts:
        proof = Proof(platform=new["platform"], losses=len(shared), parts=dict(sorted(parts.items())), **commits)
        kept = [one for one in read_proofs(options.into) if one != proof]
        text = json.dumps([one.model_dump() for one in (*kept, proof)], indent=1)
        write_atomically(options.into, re.sub(r"\[\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2]", text) + "\n")
        print(f"written: {options.into}")
    return 0


def _commit(name: str) -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--short=12", f"{name}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or None


def _record(commit: str) -> Any:
    """What the suite gives at a commit; None where it cannot be run there."""
    with tempfile.TemporaryDirectory() as folder:
        place, file = Path(folder) / "checkout", Path(folder) / "golden.json"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(place), commit], cwd=ROOT, check=True)
        try:
            print(f"the golden suite at {commit}", file=sys.stderr)
            command = [sys.executable, "-m", "tests.runners.training.golden", str(file)]
            done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(place)})
            return json.loads(file.read_text()) if done.returncode == 0 else None
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
