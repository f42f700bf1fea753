"""The command line.

Exit codes: 0 done; 1 a run failed, or standard output took no more; 2 the user's input is wrong; 3 `gpu` had too few
minutes; 130, 143 stopped by a signal; 141 the reader of standard output left, and everything else went well.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from runners.runs.signals import Stopped, StopRequest
from runners.streams import unfailing
from runners.verbs import (
    bench,
    blocks,
    calibrate,
    data,
    evaluate,
    gpu,
    gpu_import,
    gpu_pack,
    log,
    model,
    plan,
    power,
    report,
    reproduce,
    results,
    run,
    train,
    weights,
)
from runners.verbs.common import Context, Verb

VERBS: Mapping[str, Verb] = {
    "plan": plan.VERB,
    "run": run.VERB,
    "train": train.VERB,
    "evaluate": evaluate.VERB,
    "log": log.VERB,
    "reproduce": reproduce.VERB,
    "report": report.VERB,
    "results": results.VERB,
    "power": power.VERB,
    "calibrate": calibrate.VERB,
    "bench": bench.VERB,
    "data": data.VERB,
    "model": model.VERB,
    "blocks": blocks.VERB,
    "weights": weights.VERB,
    "gpu-pack": gpu_pack.VERB,
    "gpu": gpu.VERB,
    "gpu-import": gpu_import.VERB,
}
OWN = ("runners", "llama_variants", "analysis")
STOPPING = "stopping: the step in hand is finished and saved; once more to stop at once"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. What cannot be printed stops nothing (:mod:`runners.streams`)."""
    with unfailing() as streams:
        try:
            code = _carry_out(arguments)
        except SystemExit as leaving:  # of argparse: help, or a mistake
            raise SystemExit(streams.exit_code(int(leaving.code or 0))) from None
        return streams.exit_code(code)


def _carry_out(arguments: Sequence[str] | None) -> int:
    parsed = make_parser().parse_args(arguments)
    verb: Verb = parsed.verb
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    stop = StopRequest(says=STOPPING if first and verb.trains_here else "")
    stop.install(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if verb.prints_only:
        gc.disable()
    try:
        from llama_variants.errors import ConfigError  # with pydantic, which --help does without

        try:
            return verb.carry_out(parsed, Context(stop=stop, first=first))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN):
            raise
        how = "python -m pip install -r requirements.lock"
        text = f"the package {package} is not installed, and `{parsed.verb_name}` needs it"
        print(f"error: {text}; install what is pinned: {how}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stopped:
        if first:
            print("stopped; the same command goes on with what is not done", file=sys.stderr)
        signum = getattr(stopped, "signum", signal.SIGINT)
        return 128 + signum if signum else 0
    finally:
        gc.enable()


class _Parser(argparse.ArgumentParser):
    """Says what was probably meant by a misspelt verb, option or choice; the parsers of verbs are of this kind too."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse does it, but the verb that got unknown arguments refuses them, not the parser above it."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with 2, the usage and the message."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            wrong, known = [found[1]], re.findall(r"[\w-]+", found[2])
        else:
            wrong, known = re.findall(r"--[\w-]+", message), re.findall(r"--[\w-]+", self.format_usage())
            wrong = [name for name in wrong if name not in known]
        meant = [name for one in wrong for name in difflib.get_close_matches(one, known, n=1)]
        super().error(message + (f"; did you mean {', '.join(map(repr, meant))}?" if meant else ""))


def make_parser() -> argparse.ArgumentParser:
    """What reads the command line; ``verb`` of what it parses is the :class:`Verb`."""
    parser = _Parser(prog="python -m runners", description="Architecture ablations of a 135M Llama.")
    commands = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = commands.add_parser(
            name,
            aliases=verb.aliases,
            help=verb.summary,
            description=verb.description,
            epilog="\n".join(["examples:", *(f"  {parser.prog} {example}" for example in verb.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(sub)
        sub.set_defaults(verb=verb, verb_name=name)
    return parser
