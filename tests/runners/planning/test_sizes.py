"""Too little text for a recipe is a problem of the plan: before it is tokenized where that can be known, else after."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_variants.errors import ConfigError
from runners.cli import main
from runners.data import DataConfig, prepare
from runners.data.config import Sizes
from runners.data.shards import known_sizes
from runners.planning.bases import load_base
from runners.planning.recipe import MAX_EPOCHS, Recipe

EXPERIMENT = "experiments/micro_theta.yaml"
BASE = Path("experiments/base/micro.yaml")


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def change(old: str, new: str) -> None:
    text = BASE.read_text()
    assert old in text
    BASE.write_text(text.replace(old, new))


TOO_MUCH = [
    ("num_steps: 30", "num_steps: 20000", "train.num_steps: received 20,000, whose 2,560,000 tokens are "),
    ("num_windows: 8", "num_windows: 5000", "eval.num_windows: received 5,000 "),
    ("tokens_per_step: 128", "tokens_per_step: 65536", "train.num_steps: received 30, whose 1,966,080 tokens are "),
]


@pytest.mark.parametrize("built", [False, True], ids=["before tokenizing", "when built"])
@pytest.mark.parametrize("verb", ["plan", "run", "train"])
@pytest.mark.parametrize(("old", "new", "says"), TOO_MUCH)
def test_what_the_text_is_too_little_for_ends_in_2(here, capsys, verb, old, new, says, built):
    if built:
        prepare(load_base(BASE)[1].data, Path("cache"))
    change(old, new)
    before = sorted(here.rglob("*"))
    arm = ["control"] if verb == "train" else []
    assert main([verb, EXPERIMENT, *arm, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "micro-theta on micro: 1 problem, nothing was run" in error
    assert says in error
    assert "(control, twin, theta_100)" in error
    assert sorted(here.rglob("*")) == before


def test_both_problems_are_told_at_once(here, capsys):
    for old, new, _ in TOO_MUCH[:2]:
        change(old, new)
    assert main(["plan", EXPERIMENT]) == 2
    error = capsys.readouterr().err
    assert "2 problems, nothing was run" in error
    assert all(says in error for *_, says in TOO_MUCH[:2])


def test_what_only_tokenizing_tells_stops_a_run_before_its_first_folder(here, capsys):
    """So many windows could be in so many bytes, but are not."""
    most = known_sizes(load_base(BASE)[1].data, Path("cache")).validation
    assert most is not None
    change("num_windows: 8", f"num_windows: {most // 32}")
    assert main(["plan", EXPERIMENT]) == 0
    assert main(["run", EXPERIMENT, "--device", "cpu"]) == 2
    assert "the validation text has no more windows of 32 tokens" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["plan", EXPERIMENT]) == 2  # from now on


def test_of_compressed_files_nothing_is_known_before(here, capsys):
    for file in Path("text").glob("*.txt"):
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    change("-*.txt", "-*.txt.gz")
    change("num_windows: 8", "num_windows: 5000")
    assert known_sizes(load_base(BASE)[1].data, Path("cache")) == Sizes(vocab=300)
    assert main(["plan", EXPERIMENT]) == 0
    assert main(["train", EXPERIMENT, "control", "--device", "cpu"]) == 2
    assert not Path("runs").exists()
    assert main(["plan", EXPERIMENT]) == 2


@pytest.mark.parametrize("verb", [["run"], ["train"]])
def test_a_bad_row_ends_in_2_without_a_run(here, capsys, verb):
    """What only reading all of the text can tell."""
    Path("text/train-xx.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    change("text/train-*.txt", "text/train-*")
    assert main(["plan", EXPERIMENT]) == 0
    assert main([*verb, EXPERIMENT, *(["control"] if verb == ["train"] else []), "--device", "cpu"]) == 2
    assert "text/train-xx.jsonl, line 2: data.source.train: received null; allowed: text" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_arm_that_alone_sees_too_much_is_named(here, capsys):
    """Of the base's budgets the second repeats the text more often than the control does."""
    train = known_sizes(load_base(BASE)[1].data, Path("cache")).train
    assert train
    steps = int(MAX_EPOCHS * (train // 32 * 32) / 128 / 2)
    change("num_steps: 30", f"num_steps: {steps}")
    change("blocks: 3", "blocks: 3\nbudgets: [3]")
    file = Path(EXPERIMENT)
    assert main(["plan", EXPERIMENT]) == 0
    file.write_text(file.read_text() + "budgets: true\n")
    assert main(["plan", EXPERIMENT]) == 2
    assert "passes over the text (tokens_3x); allowed: at most 16 passes" in capsys.readouterr().err


def test_what_is_taken_is_said_and_listed(here, capsys):
    assert main(["plan", EXPERIMENT]) == 0
    out = capsys.readouterr().out
    assert "train files: 12 of text (text/train-00.txt, text/train-01.txt, text/train-02.txt and 9 more)" in out
    assert "validation files: 3 of text (" in out
    assert main(["plan", EXPERIMENT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["validation"].startswith("3 of text")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text/train-xx.bin", b"?", "text/train-xx.bin, whose suffix '.bin' says no format"),
        ("text/train-xx.txt", b'{"text": "a"}\n', "text/train-xx.txt, which holds JSON lines by its content"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_of_the_base(here, capsys, name, content, says):
    Path(name).write_bytes(content)
    change("text/train-*.txt", "text/train-*")
    assert main(["plan", EXPERIMENT]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "experiments/base/micro.yaml:" in error


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=8)


@given(train=texts, quoted=st.booleans())
def test_no_corpus_has_more_tokens_than_are_promised(made_once, train, quoted):
    """The least that a file can be around its texts: bare strings in lines, and bare text."""
    folder = made_once("least", lambda folder: None)
    train = [text for text in train if text.strip() and text != "held"] or ["x"]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(text, ensure_ascii=quoted) for text in train))
    (folder / "a.json").write_text(json.dumps(train, ensure_ascii=quoted, separators=(",", ":")))
    (folder / "b.txt").write_text(train[0][::-1], newline="")
    (folder / "v.txt").write_text("held")
    for name in ("a.jsonl", "a.json", "b.txt"):
        files = {"type": "files", "train": [f"{folder}/{name}"], "validation": [f"{folder}/v.txt"]}
        fields: dict[str, Any] = {"source": files, "tokenizer": {"type": "bpe", "vocab_size": 257}}
        config = DataConfig.model_validate(fields)
        most = known_sizes(config, folder / "none")
        corpus = prepare(config, folder / "cache")
        exactly = Sizes(train=len(corpus.train.tokens), validation=len(corpus.validation.tokens), vocab=257)
        assert most.train is not None
        assert most.validation is not None
        assert exactly.train <= most.train
        assert exactly.validation <= most.validation
        assert known_sizes(config, folder / "cache") == exactly


def test_one_rule_decides_exactly_at_the_limit(recipe: Recipe):
    """16 passes are allowed, and windows are whole: what is left over at a split's end counts for nothing."""
    steps = recipe.train.num_steps  # of 128 tokens
    windows = steps * 128 // 32 // int(MAX_EPOCHS) + 1
    assert not list(recipe.size_problems(Sizes(train=windows * 32, validation=8 * 32)))
    (one,) = recipe.size_problems(Sizes(train=(windows - 1) * 32 + 31, validation=8 * 32))
    assert one.path == ("train", "num_steps")
    (two,) = recipe.size_problems(Sizes(train=windows * 32, validation=8 * 32 - 1))
    assert two.path == ("eval", "num_windows")
    assert "at most 7" in two.allowed
    assert len(list(recipe.size_problems(Sizes(train=31, validation=31)))) == 2


def large_tokenizer(folder: Path, vocab_size: int) -> None:
    """A pretrained tokenizer in a local folder, as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["a b c"], trainer)
    backend.add_tokens([f"<{i}>" for i in range(vocab_size - backend.get_vocab_size())])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)


@pytest.mark.parametrize(
    ("verb", "num_ids", "fits"),
    [(["plan"], 300, True), (["plan"], 301, False), (["run"], 301, False), (["train"], 4000, False)],
)
def test_a_tokenizer_larger_than_the_model_is_refused_before_it_has_tokenized(here, capsys, verb, num_ids, fits):
    large_tokenizer(Path("own"), num_ids)
    change("tokenizer: {type: bpe, vocab_size: 300}", "tokenizer: {type: pretrained, path: own}")
    arguments = [*verb, EXPERIMENT, *(["control"] if verb == ["train"] else []), "--device", "cpu"]
    assert main(arguments) == (0 if fits else 2)
    if not fits:
        error = capsys.readouterr().err
        assert (
            f"model.vocab_size: received 300 (control, twin, theta_100); allowed: at least the tokenizer's {num_ids}"
            in error
        )
        assert not Path("cache/corpora").exists()
        assert not Path("runs").exists()


def test_a_tokenizer_that_is_seen_only_when_it_is_there_is_refused_then(here):
    """As one of a hub is, or of a wheel that has not been fetched."""
    large_tokenizer(Path("own"), 400)
    change("tokenizer: {type: bpe, vocab_size: 300}", "tokenizer: {type: pretrained, path: own}")
    with pytest.raises(ConfigError, match="at least the tokenizer's 400"):
        prepare(load_base(BASE)[1].data, Path("cache"), vocab_size=300)
    assert not list(Path("cache/corpora").glob("*/*"))
