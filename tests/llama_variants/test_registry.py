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
    assert versions["itself"] == versions["a comment"] == versions["a neighbour"]
    assert len(set(versions.values())) == 3


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
