"""`import llama_variants` loads nothing heavy, has all of its names, and transformers' Auto classes know its models."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llama_variants
from llama_variants import ModelConfig, build_model


def fresh(code: str, *arguments: str) -> str:
    """What ``code`` prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A variant that no stock Llama can express, as :func:`save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("variant")
    delta = {"num_hidden_layers": 1, "vocab_size": 300, "mlp": {"type": "relu2"}}
    build_model(ModelConfig.preset("smollm2-135m").override(delta)).save_pretrained(folder)
    return folder


BEFORE = """
import sys
import llama_variants
assert not {"torch", "transformers"} & set(sys.modules)
from transformers import AutoModelForCausalLM
"""
AFTER = """
from transformers import AutoModelForCausalLM
import llama_variants
"""
LONG_AFTER = """
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
import sys
assert "llama_variant" not in CONFIG_MAPPING
import llama_variants
assert "llama_variants.model" not in sys.modules
"""


@pytest.mark.parametrize("start", [BEFORE, AFTER, LONG_AFTER], ids=["before", "after", "long after"])
def test_auto_classes_load_a_saved_variant_whichever_is_imported_first(saved, start):
    load = "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__module__)"
    assert fresh(f"{start}\nimport sys\n{load}", str(saved)) == "llama_variants.model\n"


def test_other_models_are_looked_up_as_ever(saved):
    code = """
import llama_variants
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert CONFIG_MAPPING["llama"].__name__ == "LlamaConfig"
try:
    CONFIG_MAPPING["no_such_model"]
except KeyError:
    print("refused")
"""
    assert fresh(code) == "refused\n"


def test_a_model_that_was_built_can_be_made_again_by_its_configuration():
    code = """
from llama_variants import ModelConfig, build_model
small = ModelConfig.preset("smollm2-135m").override({"num_hidden_layers": 1, "mlp": {"type": "relu2"}})
model = build_model(small, device="meta")
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_config(model.config)).__name__)
"""
    assert fresh(code) == "LlamaForCausalLM\n"


def test_every_name_is_there_without_being_imported():
    assert set(llama_variants.__all__) <= set(dir(llama_variants))
    code = "from llama_variants import *; import llama_variants as a; print(all(n in globals() for n in a.__all__))"
    assert fresh(code) == "True\n"
    for name in llama_variants.__all__:
        assert getattr(llama_variants, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'LlamaForCasualLM'"):
        llama_variants.LlamaForCasualLM  # noqa: B018
    with pytest.raises(ImportError):
        from llama_variants import LlamaForCasualLM  # noqa: F401


def test_looking_for_transformers_module_and_importing_it_anew_lose_nothing():
    code = (
        "import llama_variants, importlib, importlib.util\n"
        "name = 'transformers.models.auto.configuration_auto'\n"
        "importlib.util.find_spec(name)\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('llama_variant').model_type)\n"
        "import sys\n"
        "print(type(importlib.reload(sys.modules[name]).AutoConfig.for_model('llama_variant')).__name__)\n"
    )
    assert fresh(code).split() == ["llama_variant", "LlamaVariantConfig"]
