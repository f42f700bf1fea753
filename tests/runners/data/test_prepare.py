"""From sources to shards: real archives and the real datasets library, with faults planted."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from llama_variants.errors import ConfigError
from runners.data import Corpus, DataConfig, DataError, packages, prepare, shards
from runners.data.token_bytes import token_bytes
from tests.conftest import ROOT
from tests.runners.data.wheels import cached

BPE = {"type": "bpe", "vocab_size": 280}


def text(word: str, count: int = 400) -> bytes:
    return (" ".join(f"{word}{i % 37}" for i in range(count)) + " café ∑\n").encode()


def packages_config(train: list[str], validation: list[str]) -> DataConfig:
    source = {"type": "packages", "train": train, "validation": validation}
    return DataConfig.model_validate({"source": source, "tokenizer": BPE})


@pytest.fixture
def two_wheels(tmp_path: Path) -> DataConfig:
    shared = text("shared")
    train = {
        "a/z.py": text("zed"),
        "a/b.py": text("bee"),
        "a/copy.py": text("bee"),
        "a/shared.py": shared,
        "a/blob.so": b"\xff\xfe",
        "a/empty.py": b"",
    }
    pin_train = cached(tmp_path, "left", train)
    pin_validation = cached(tmp_path, "right", {"r/one.py": text("one"), "r/same.py": shared})
    return packages_config([pin_train], [pin_validation])


def decoded(corpus: Corpus, split: str) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    offsets = np.load(corpus.folder / f"{split}.offsets.npy")
    tokens = getattr(corpus, split).tokens
    assert (tokens[offsets[1:] - 1] == corpus.manifest["end_id"]).all()
    return [
        tokenizer.decode(tokens[start : end - 1].tolist(), skip_special_tokens=False)
        for start, end in itertools.pairwise(offsets)
    ]


def test_packages_become_tokens_and_back(two_wheels, tmp_path):
    corpus = prepare(two_wheels, tmp_path)
    # Sorted by path; the copy, the empty file and the binary are gone; what validation holds is not in training.
    assert decoded(corpus, "train") == [text("bee").decode(), text("zed").decode()]
    assert decoded(corpus, "validation") == [text("one").decode(), text("shared").decode()]
    record = corpus.manifest["splits"]["train"]
    assert record["duplicates_dropped"] == 2
    assert record["bytes"] == len(text("bee")) + len(text("zed"))
    assert record["domains"]["left"] == {"start": 0, "tokens": record["tokens"], "bytes": record["bytes"]}
    assert corpus.train.tokens.dtype == np.dtype("<u2")
    corpus.verify()


def test_content_is_the_same_everywhere(two_wheels, tmp_path):
    """Golden: tokens and tokenizer of a fixed corpus, whatever the platform and the number of threads."""
    corpus = prepare(two_wheels, tmp_path)
    digest = hashlib.sha256(json.dumps(corpus.manifest["sha256"], sort_keys=True).encode()).hexdigest()[:16]
    assert digest == "a48bca2d320099ca"


def test_a_second_prepare_only_opens(two_wheels, tmp_path):
    said: list[str] = []
    first = prepare(two_wheels, tmp_path, said.append)
    assert any("built" in line for line in said)
    said.clear()
    assert prepare(two_wheels, tmp_path, said.append).fingerprint == first.fingerprint
    assert said == []


def test_text_that_spells_the_end_token_is_text(tmp_path):
    pin_a = cached(tmp_path, "a", {"a.py": text("w") + b"<|endoftext|> " + text("v")})
    pin_b = cached(tmp_path, "b", {"b.py": text("u")})
    corpus = prepare(packages_config([pin_a], [pin_b]), tmp_path)
    assert (corpus.train.tokens == corpus.manifest["end_id"]).sum() == 1


@pytest.mark.slow
def test_pip_refuses_a_wrong_hash_and_takes_the_right_one(tmp_path):
    right = "networkx==3.6.1 sha256:d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"
    with pytest.raises(DataError, match=r"networkx==3.6.1 .*pinned hash"):
        packages.fetch(right[:-1] + "3", tmp_path)
    assert packages.fetch(right, tmp_path).name == "networkx-3.6.1-py3-none-any.whl"


@pytest.mark.slow
def test_the_tiny_corpus_is_the_one_that_results_were_made_on(tmp_path):
    from runners.planning.bases import load_base

    _, recipe = load_base(ROOT / "experiments/base/tiny.yaml")
    corpus = prepare(recipe.data, tmp_path)
    corpus.verify()
    assert corpus.fingerprint == "0169c12a1cdd1455"


@pytest.mark.slow
def test_bpe_does_not_depend_on_threads(two_wheels, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(two_wheels.model_dump(mode="json")))
    script = (
        "import json, pathlib, sys\n"
        "from runners.data import DataConfig, prepare\n"
        "config = DataConfig.model_validate(json.loads(pathlib.Path('config.json').read_text()))\n"
        "pathlib.Path(sys.argv[1]).mkdir()\n"
        "pathlib.Path(sys.argv[1], 'wheels').symlink_to('../wheels')\n"
        "print(prepare(config, pathlib.Path(sys.argv[1])).fingerprint)\n"
    )
    prints = set()
    for threads in ("1", "2"):
        environment = {"RAYON_NUM_THREADS": threads, "PATH": "", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, f"cache{threads}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        prints.add(done.stdout)
    assert len(prints) == 1


def test_files_of_all_formats(tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes(text("plain"))
    Path("b.jsonl").write_text("".join(json.dumps({"body": text(w).decode()}) + "\n" for w in ("one", "two")))
    pd.DataFrame({"body": [text("three").decode()], "n": [1]}).to_parquet("c.parquet")
    Path("v.txt").write_bytes(text("held") + b"\nsecond line\n")
    source = {"type": "files", "train": ["*.jsonl", "a.*", "c.parquet"], "validation": ["v.txt"], "text_field": "body"}
    corpus = prepare(DataConfig.model_validate({"source": source, "tokenizer": BPE}), tmp_path / "cache")
    assert decoded(corpus, "train") == [text(w).decode() for w in ("plain", "one", "two", "three")]
    assert decoded(corpus, "validation") == [(text("held") + b"\nsecond line\n").decode()]

    with pytest.raises(ConfigError, match=r"b.jsonl, line 1: .* no 'content'; its fields are 'body'"):
        changed = DataConfig.model_validate({"source": source | {"text_field": "content"}, "tokenizer": BPE})
        prepare(changed, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"'absent.\*', which matches no file"):
        absent = DataConfig.model_validate({"source": source | {"train": ["absent.*"]}, "tokenizer": BPE})
        absent.identity()


def test_a_hub_dataset_by_way_of_a_local_folder(tmp_path, monkeypatch):
    """load_dataset takes a folder where it takes a hub id, so this is the hub's own path without a network."""
    import pandas as pd

    folder = tmp_path / "set"
    folder.mkdir()
    texts = [text(f"w{i}").decode() for i in range(10)]
    pd.DataFrame({"text": texts[:8]}).to_parquet(folder / "train-00000-of-00001.parquet")
    pd.DataFrame({"text": texts[8:]}).to_parquet(folder / "validation-00000-of-00001.parquet")
    source = {"type": "hub", "dataset": str(folder), "train": "train", "validation": "validation", "revision": "main"}
    corpus = prepare(DataConfig.model_validate({"source": source, "tokenizer": BPE}), tmp_path / "cache")
    assert decoded(corpus, "train") == texts[:8]
    assert decoded(corpus, "validation") == texts[8:]


def test_a_pretrained_tokenizer_from_a_folder(two_wheels, tmp_path):
    from transformers import PreTrainedTokenizerFast

    built = prepare(two_wheels, tmp_path)
    saved = PreTrainedTokenizerFast(
        tokenizer_file=str(built.folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    saved.save_pretrained(tmp_path / "tokenizer")
    again = two_wheels.model_dump(mode="json") | {
        "tokenizer": {"type": "pretrained", "path": str(tmp_path / "tokenizer")}
    }
    corpus = prepare(DataConfig.model_validate(again), tmp_path)
    assert corpus.folder != built.folder
    assert np.array_equal(corpus.train.tokens, built.train.tokens)
    missing = again | {"tokenizer": {"type": "pretrained", "path": str(tmp_path / "absent")}}
    with pytest.raises(ConfigError, match="a folder, or a hub id and its revision"):
        prepare(DataConfig.model_validate(missing), tmp_path)


def test_damage_to_shards_is_found(two_wheels, tmp_path):
    corpus = prepare(two_wheels, tmp_path)
    file = corpus.folder / "train.bin"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="train.bin is not what was built"):
        corpus.verify()
    with pytest.raises(DataError, match="train.bin is not what was built"):  # as whoever trains on it calls
        prepare(two_wheels, tmp_path)
    file.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"train.bin has .* bytes"):
        prepare(two_wheels, tmp_path)
    manifest = corpus.folder / "manifest.json"
    built = manifest.read_text()
    end = '"end_id": 0'
    assert end in built
    for damaged in (built.replace("train.bin", "train.bim"), built.replace(end, '"end_id": 5'), built[:-9]):
        manifest.write_text(damaged)
        with pytest.raises(DataError, match="manifest.json is not what was built; delete"):
            prepare(two_wheels, tmp_path)


@pytest.mark.parametrize("characters", [1, 700, 2**21])
def test_how_documents_are_put_together_for_encoding_changes_no_byte(tmp_path, monkeypatch, characters):
    monkeypatch.setattr(shards, "_CHUNK", characters)
    pin_a = cached(tmp_path, "a", {f"a/{i}.py": text(f"w{i}_", 9 * i % 200) for i in range(30)})
    pin_b = cached(tmp_path, "b", {"b.py": text("held")})
    assert prepare(packages_config([pin_a], [pin_b]), tmp_path).fingerprint == "d595aca26ace7445"


BUILD = """
import json, pathlib, sys
from runners.data import DataConfig, prepare
config = DataConfig.model_validate(json.loads(pathlib.Path("config.json").read_text()))
print("ready", flush=True)
print(prepare(config, pathlib.Path("."), lambda text: print(text, flush=True)).fingerprint)
"""


@pytest.mark.slow
def test_builds_at_once_and_builds_that_were_killed(tmp_path):
    """Killed at any step a build leaves nothing that is believed, and the next begins anew; two at once make one."""
    pin_a = cached(tmp_path, "a", {f"a/{i}.py": text(f"w{i}_", 3000) for i in range(120)})
    pin_b = cached(tmp_path, "b", {"b.py": text("held")})
    config = packages_config([pin_a], [pin_b])
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )

    for begun in ("*.lock", "*.partial/validation.bin", "*.partial/train.bin", "*.partial/train.offsets.npy"):
        process = start()
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and not list((tmp_path / "corpora").glob(begun)):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, begun
        assert not list(tmp_path.glob("corpora/*/manifest.json"))
    prepare(config, tmp_path).verify()
    assert not list(tmp_path.glob("corpora/*.partial"))
    shutil.rmtree(tmp_path / "corpora")
    outputs = [process.communicate()[0].splitlines() for process in (start(), start())]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum(line.startswith("built") for output in outputs for line in output) == 1
    prepare(config, tmp_path).verify()
    assert not list(tmp_path.glob("corpora/*.partial"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"type": "packages", "train": ["sympy==1.14.0"], "validation": []}, "which `pip hash` prints"),
        ({"type": "packages", "train": [], "validation": []}, "at least 1 item"),
        ({"type": "hub", "dataset": "x", "train": "train", "validation": "test"}, "revision"),
        ({"type": "web"}, "packages"),
    ],
)
def test_wrong_declarations(source, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig.model_validate({"source": source, "tokenizer": BPE})


def test_a_package_cannot_be_on_both_sides():
    pin = "Some_Package==1.0 sha256:" + "0" * 64
    other = "some-package==2.0 sha256:" + "1" * 64
    with pytest.raises(ValidationError, match="in both: some-package"):
        packages_config([pin], [other])


def test_a_corpus_does_not_depend_on_the_current_folder(two_wheels, tmp_path, monkeypatch):
    """Its tokenizer is read when bytes are first counted, which may be long after."""
    monkeypatch.chdir(tmp_path)
    corpus = prepare(two_wheels, Path())
    monkeypatch.chdir("/")
    corpus.verify()
    places = np.arange(len(corpus.validation.tokens))
    assert token_bytes(corpus).at(places).sum() == corpus.validation.num_bytes
