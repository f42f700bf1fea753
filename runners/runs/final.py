"""The weights of a finished run, as anyone's transformers loads them."""

from __future__ import annotations

import os

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from llama_variants import LlamaForCausalLM
from runners.data.atomic import whole_folder
from runners.data.batches import Corpus
from runners.runs.folder import RunFolder


def keep_final(model: LlamaForCausalLM, corpus: Corpus, run: RunFolder) -> bool:
    """Write weights, configuration and the corpus's tokenizer to the run's folder, whole or not at all.

    Returns whether that went well; says why not. The run is done either way: what it was made for is in its log.
    """
    logging.disable_progress_bar()  # it would tear up the display of the sweep
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.folder / "tokenizer.json"))
        end = corpus.manifest["end_id"]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        # Without these generation would run past the end of a document, into the next.
        model.config.eos_token_id = model.generation_config.eos_token_id = end
        with whole_folder(run.final.with_name(f".final.{os.getpid()}"), run.final) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except Exception as error:  # tokenizers raises nothing more special on a full disk
        run.say(f"final weights not written ({error})")
        return False
    return True
