"""Registries: one name, one class, and errors that name the places."""

from __future__ import annotations

import importlib
import sys

import pytest
from torch import nn

from llama_variants.errors import ConfigError
from llama_variants.registry import FAMILIES, BlockConfig, FreeConfig, Registry


def member() -> type[nn.Module]:
    class Block(nn.Module):
        class Config(FreeConfig):
            pass

    return Block


def test_a_name_twice_names_both_places():
    registry: Registry[nn.Module] = Registry("toy", "torch.nn.Module", BlockConfig)
    registry.register("a")(member())
    with pytest.raises(ValueError, match=r"'a' is registered twice: .*test_registry.py:\d+ and .*test_registry.py:\d+"):
        registry.register("a")(member())
    assert registry.names == ["a"]


def test_wrong_base_and_missing_config():
    registry: Registry[nn.Module] = Registry("toy", "torch.nn.Module", BlockConfig)
    with pytest.raises(TypeError, match="must derive from Module"):
        registry.register("a")(type("NotAModule", (), {"Config": BlockConfig}))
    with pytest.raises(TypeError, match="needs a Config"):
        registry.register("a")(type("Bare", (nn.Module,), {}))
    costless = type("Costless", (nn.Module,), {"Config": type("Config", (BlockConfig,), {})})
    with pytest.raises(TypeError, match=r"needs a cost\(\)"):
        registry.register("a")(costless)
    own = member()
    registry.register("mine")(own)
    borrowed = type("Borrowed", (nn.Module,), {"Config": own.Config})
    with pytest.raises(TypeError, match="this is the one of 'mine'"):  # or it would rename it
        registry.register("a")(borrowed)
    registry.forget(own.__module__)
    inherits = type("Inherits", (member(),), {})
    with pytest.raises(TypeError, match="of its own"):  # or it would rename its parent's
        registry.register("a")(inherits)
    assert registry.names == []


@pytest.mark.parametrize("name", ["", "Upper", "with-hyphen", "1st", "a b"])
def test_a_name_that_no_yaml_should_say(name):
    registry: Registry[nn.Module] = Registry("toy", "torch.nn.Module", BlockConfig)
    with pytest.raises(ValueError, match="lower-case letters"):
        registry.register(name)(member())


def test_versions_of_our_own_blocks_are_declared_and_those_of_others_read_from_their_file(tmp_path, monkeypatch):
    assert FAMILIES["mlp"].version("swiglu") == "1"
    registry: Registry[nn.Module] = Registry("toy", "torch.nn.Module", BlockConfig)
    text = (
        "from torch import nn\nfrom llama_variants.registry import FreeConfig\nWIDTH = 3\n"
        "class Block(nn.Module):\n    class Config(FreeConfig):\n        width: int = WIDTH\n"
        "class Neighbour(nn.Module):\n    width = 1\n"
    )
    texts = {
        "itself": text,
        "a comment": text + "# a comment\n",
        "a neighbour": text.replace("width = 1", "width = 2"),
        "what it names": text.replace("WIDTH = 3", "WIDTH = 4"),
        "its body": text.replace("= WIDTH", "= WIDTH + 1"),
    }
    monkeypatch.syspath_prepend(tmp_path)
    versions = {}
    for i, (name, written) in enumerate(texts.items()):
        (tmp_path / f"plugin_{i}").mkdir()
        (tmp_path / f"plugin_{i}/plugin.py").write_text(written)
        monkeypatch.syspath_prepend(tmp_path / f"plugin_{i}")
        sys.modules.pop("plugin", None)
        registry.register(f"b{i}")(importlib.import_module("plugin").Block)
        versions[name] = registry.version(f"b{i}")
    sys.modules.pop("plugin")
    assert all(version.startswith("1-") for version in versions.values())
    assert versions["itself"] == versions["a comment"]
    assert len(set(versions.values())) == 4  # of a plugin all counts: nobody knows what its other lines do


HEAD = "from torch import nn\nfrom llama_variants.registry import FreeConfig\n"


def block(body: str) -> str:
    """A plugin's class."""
    return (
        "class Block(nn.Module):\n    class Config(FreeConfig):\n        pass\n"
        f"    def forward(self, x):\n        return {body}\n"
    )


SHAPES = {
    "under a condition": {"plug.py": HEAD + "if True:\n    " + block("2 * x").replace("\n", "\n    ")},
    "a helper in a try": {"plug.py": HEAD + "try:\n    W = 2\nexcept ImportError:\n    W = 3\n" + block("W * x")},
    "imported by a function": {
        "plug.py": HEAD
        + block("self.f(x)")
        + "    def f(self, x):\n        import other\n        return other.W * x\n",
        "other.py": "W = 2\n",
    },
    "re-exported": {
        "plug.py": HEAD + "from other import W\n" + block("W * x"),
        "other.py": "from deep import *\n",
        "deep.py": "W = 2\n",
    },
    "in a package beside": {
        "plug.py": HEAD + "import sub.impl\n" + block("sub.impl.W * x"),
        "sub/__init__.py": "",
        "sub/impl.py": "W = 2\n",
    },
    "set at the top level": {"plug.py": HEAD + block("self.w * x") + "setattr(Block, 'w', 2)\n"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plugin_s_version_follows_all_that_it_may_run(tmp_path, monkeypatch, shape):
    """Whatever way its code is written, and whether what it imports is imported yet or not."""
    names, versions = ("plug", "other", "deep", "sub", "sub.impl"), []
    for new in ("2", "4"):
        folder = tmp_path / new
        for name, text in SHAPES[shape].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.replace("2", new))
        monkeypatch.syspath_prepend(folder)
        for name in names:
            sys.modules.pop(name, None)
        registry: Registry[nn.Module] = Registry("toy", "torch.nn.Module", BlockConfig)
        registry.register("a")(importlib.import_module("plug").Block)
        versions.append(registry.version("a"))
    for name in names:
        sys.modules.pop(name, None)
    assert versions[0] != versions[1]


def test_unknown_name_says_what_there_is():
    with pytest.raises(ConfigError, match=r"did you mean 'swiglu'\? one of swiglu"):
        FAMILIES["mlp"]["swigu"]


@pytest.mark.parametrize("family", FAMILIES)
def test_members_carry_their_name_and_say_what_they_are(family):
    registry = FAMILIES[family]
    for name in registry.names:
        assert registry.config_class(name).type == name
        doc = registry[name].__doc__
        assert "Source: " in doc
        assert "the control" in doc or "Differs from" in doc or "Equal to the control" in doc, doc
        assert registry.config_class(name).__doc__
