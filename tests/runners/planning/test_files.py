"""Whatever a file says wrongly is answered in the words of whoever writes YAML, not in those of a library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from llama_variants.config import ModelConfig
from llama_variants.errors import _models_in, check
from llama_variants.registry import FAMILIES
from runners.planning.components import OPTIMIZER, PROBE, SCHEDULE
from runners.planning.files import BaseFile, ExperimentFile
from runners.planning.recipe import EvalConfig, TrainConfig

JUNK = (
    *(None, True, "", "a b", "..", "x" * 2000, 0, -1, -0.5, 1.5, 10**9, float("inf"), float("nan")),
    *([], [1], [1, 2, 3], ["a", "a"], [["a"]], {}, {"a": 1}, {"a b": 1}, {"type": "x"}, {"a": {}}),
)


def within(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The class itself and those of its fields, at any depth."""
    yield cls
    for field in cls.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from within(inner)


def written() -> list[type[BaseModel]]:
    """Every class that a file of experiments/ is read into."""
    roots = [ExperimentFile, BaseFile, ModelConfig, TrainConfig, EvalConfig]
    roots += [
        registry.config_class(name)
        for registry in (*FAMILIES.values(), OPTIMIZER, SCHEDULE, PROBE)
        for name in registry.names
    ]
    return list(dict.fromkeys(cls for root in roots for cls in within(root)))


def raw_messages(cls: type[BaseModel], data: dict[str, object]) -> set[str]:
    """Pydantic's own, but for those that a validator of ours raised."""
    try:
        cls.model_validate(data)
    except ValidationError as error:
        return {one["msg"] for one in error.errors() if one["type"] != "value_error"}
    return set()


@pytest.mark.parametrize("cls", written(), ids=lambda cls: cls.__qualname__)
def test_no_message_is_pydantic_s(cls):
    seen = 0
    for name in cls.model_fields:
        for junk in JUNK:
            theirs = raw_messages(cls, {name: junk})
            for problem in check(cls, {name: junk})[1]:
                seen += 1
                assert problem.allowed not in theirs, problem
                assert problem.allowed.strip()
                assert len(str(problem)) < 1000
                assert "[key]" not in problem.path
    assert seen or not cls.model_fields


@pytest.mark.parametrize(
    ("cls", "data", "says"),
    [
        (ExperimentFile, {"match": "params"}, "match: received 'params' (text); allowed: a list, such as [a, b]"),
        (ExperimentFile, {"name": "half mlp"}, "first a letter or a digit, such as mlp_half"),
        (
            ExperimentFile,
            {"variants": {"half mlp": {}}},
            "variants.half mlp: received the name 'half mlp'; allowed: a name",
        ),
        (ExperimentFile, {"plugins": ["my-blocks"]}, "the name of a Python module, such as my_blocks"),
        (ExperimentFile, {"plugins": []}, ""),
        (
            BaseFile,
            {"decide": {"difference": {"sd": 0.3, "df": 4, "low": 0.1, "high": 0.2, "source": "x"}}},
            "allowed: low, sd and high that ascend",
        ),
        (BaseFile, {"decide": {"seed": {"sd": 0.1, "source": ""}}}, "decide.seed.source: received '' (empty text)"),
        (BaseFile, {"decide": {"seed": {"sd": 0.1}}}, "decide.seed.low: received nothing"),
        (BaseFile, {"decide": {"difference": {"kinds": {"norm": 0}}}}, "decide.difference.kinds.norm: received 0"),
        (BaseFile, {"checks": {"nope": {"blocks": 3}}}, "checks.nope.blocks: received unknown key 'blocks'"),
        (ExperimentFile, {"looks": [3, 2]}, "looks: received [3, 2]; allowed: ascending numbers of blocks"),
        (ExperimentFile, {"looks": [3, "5"]}, "looks.1: received '5' (text); allowed: a whole number"),
        (BaseFile, {"model": 3}, "model: received 3; allowed: a mapping, such as {key: value}"),
        (BaseFile, {"data": 3}, "data: received 3; allowed: a mapping with keys out of dedupe, source, tokenizer"),
        (BaseFile, {"data": {"source": {}}}, "data.source: received {}; allowed: a mapping with the key 'type'"),
        (BaseFile, {"data": {"source": {"type": "s3"}}}, "allowed: one of 'packages', 'files', 'hub'"),
    ],
)
def test_messages_say_what_to_write(cls, data, says):
    told = [str(problem) for problem in check(cls, data)[1]]
    assert any(says in one for one in told) if says else not any("plugins" in one for one in told), told
