"""Every verb as it is declared: its examples can be typed, its options are what was parsed, old words still work."""

from __future__ import annotations

import shlex
from dataclasses import FrozenInstanceError, dataclass

import pytest

from runners.cli import VERBS, make_parser
from runners.runs.signals import StopRequest
from runners.verbs import report, run
from runners.verbs.common import Context, verb

EXAMPLES = [(name, example) for name, verb in VERBS.items() for example in verb.examples]


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_examples_of_the_help_can_be_typed(root, name, example):
    words = shlex.split(example.split(" > ")[0])
    parsed = make_parser().parse_args(words)
    assert words[0] == name
    assert parsed.verb is VERBS[name]
    for word in words:
        if word.startswith("experiments/"):
            assert (root / word).exists()


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_shows_one_to_three_examples(name, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([name, "--help"])
    shown = capsys.readouterr().out.split("examples:\n")[1].splitlines()
    assert 1 <= len(shown) <= 3
    assert all(line.startswith(f"  python -m runners {name}") for line in shown)


def test_doctor_is_model():
    parser = make_parser()
    assert parser.parse_args(["doctor", "--json"]).verb is parser.parse_args(["model", "--json"]).verb


@pytest.mark.parametrize("verb", ["run", "report"])
def test_gate_is_require(verb):
    parser = make_parser()
    words = ["--require", "better:a", "--gate", "worse:b"]
    assert parser.parse_args([verb, "x.yaml", *words]).require == ["better:a", "worse:b"]
    assert parser.parse_args([verb, "x.yaml"]).require == []


def test_options_are_what_was_parsed_and_frozen():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Options:
        number: int

    made = verb(
        Options,
        lambda options, context: seen.append((options, context)) or 7,
        lambda parser: parser.add_argument("number", type=int),
        summary="count",
        examples=("count 3",),
    )
    parser = make_parser()
    context = Context(stop=StopRequest(), first=True)
    made.arguments(parser)
    parsed = parser.parse_args(["weights", "3"])
    assert made.carry_out(parsed, context) == 7
    ((options, given),) = seen
    assert options == Options(number=3)
    assert given is context
    assert made.description == "Count."
    with pytest.raises(FrozenInstanceError):
        options.number = 4


@pytest.mark.parametrize("module", [run, report])
def test_a_report_is_made_again_by_what_made_its_runs(module):
    from runners.verbs.judge import _same_runs

    parsed = make_parser().parse_args([module.__name__.rpartition(".")[2], "x.yaml", "--base", "tiny", "--seeds", "2"])
    assert _same_runs(parsed) == "make ablation EXP=x.yaml BASE=tiny SEEDS=2"
