"""The weights of a finished run, as anyone's transformers loads them."""

from __future__ import annotations

import os

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from llama_variants import LlamaForCausalLM
from runners.checkpoint import Checkpoints, whole_folder
from runners.data import Corpus
from runners.store import RunFolder


def keep_final(model: LlamaForCausalLM, corpus: Corpus, run: RunFolder, checkpoints: Checkpoints) -> None:
    """Write weights and tokenizer to the run's folder, and delete its checkpoints.

    Where there is no room, the checkpoints go first. Where there is none even then, the run is done without: what it
    was made for is in its log.
    """
    try:
        save_final(model, corpus, run)
    except (OSError, SafetensorError) as error:
        run.say(f"final weights not written ({error}); once more without the checkpoints")
        checkpoints.clear()
        try:
            save_final(model, corpus, run)
        except (OSError, SafetensorError) as again:
            run.say(f"final weights not kept ({again})")
    checkpoints.clear()


def save_final(model: LlamaForCausalLM, corpus: Corpus, run: RunFolder) -> None:
    """Write weights, configuration and the corpus's tokenizer, whole or not at all."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.folder / "tokenizer.json"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(corpus.manifest["end_id"])
    logging.disable_progress_bar()  # it would tear up the display of the sweep
    with whole_folder(run.final.with_name(f".final.{os.getpid()}"), run.final) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
