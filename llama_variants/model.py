"""The model: a 135M Llama put together from registered blocks. Reads from top to bottom.

Axes: b batch, t time, s time of the keys (t and what a cache holds), d model width, v vocabulary. Parameter names are
those of transformers' Llama, so that weights travel both ways by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from llama_variants.blocks.masks import Mask, by_element, documents_of, extent, packed, visible
from llama_variants.config import ModelConfig
from llama_variants.pretrained import CACHE, PreTrainedLlama, check_known
from llama_variants.registry import EMBEDDING, HEAD, NORM, RESIDUAL, ROTARY
from llama_variants.variant import LlamaVariantConfig

IGNORED = -100
"""Label of a position that is not predicted, as everywhere in transformers."""


class LlamaModel(PreTrainedLlama):
    """Embedding, decoder layers and final norm: token ids (b, t) → hidden states (b, t, d).

    Args:
        config: a ModelConfig, plain data, a transformers LlamaConfig or a :class:`LlamaVariantConfig`.
    """

    gradient_checkpointing = False  # transformers sets it, and _gradient_checkpointing_func
    residual_stream: torch.dtype | None = None
    """Type of the residual stream under autocast; that of the embedding when None."""
    document_end: int | None = None
    """Token id that ends a document. Where it is set, the documents of a row do not see each other, and positions start
    again behind it, unless ``position_ids`` are given or there is a cache."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        blocks = self.config.blocks
        self.embed_tokens = EMBEDDING[blocks.embedding.type](blocks)
        self.layers = nn.ModuleList()
        own = (blocks.rotary, blocks.attention_head_dim)
        rotaries = {own: _rotary(blocks)}  # one for each encoding, shared by the layers that have it
        for index in range(blocks.num_hidden_layers):
            layer = blocks.layer(index)
            key = (layer.rotary, layer.attention_head_dim)
            if key not in rotaries:
                rotaries[key] = _rotary(layer)
            self.layers.append(RESIDUAL[layer.residual.type](layer, index, rotary=rotaries[key]))
        self.norm = NORM[blocks.norm.type].from_config(blocks.norm, blocks.hidden_size)
        self.rotary_emb = rotaries.pop(own)
        if rotaries:  # of single layers
            self.layer_rotary_embs = nn.ModuleList(rotaries.values())
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states after the final norm, as ``last_hidden_state`` (b, t, d).

        Arguments, further outputs and errors are those of :meth:`LlamaForCausalLM.forward`.
        """
        check_known(others)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, d)
        if self.residual_stream is not None and torch.is_autocast_enabled(x.device.type):
            x = x.to(self.residual_stream)  # the layers keep it: they add what autocast computed
        cache = past_key_values if cache is None else cache
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if again:
            cache = None  # a layer that is computed twice would enter its keys twice
        elif cache is None and self._keeps_cache(use_cache, position_ids, attention_mask):
            cache = DynamicCache(config=self.config)
        documents = None
        if self.document_end is not None and input_ids is not None and position_ids is None and cache is None:
            position_ids, documents = packed(input_ids, self.document_end)
        position_ids, mask_for = _seen(x, attention_mask, position_ids, cache, documents)
        eager = self.config._attn_implementation == "eager"
        attentions: list[Tensor] | None = [] if self.asked("output_attentions", output_attentions) else None
        if attentions is not None and not eager:
            raise ValueError(
                "output_attentions=True needs attention that is written out: load the model with "
                'attn_implementation="eager", or call model.set_attn_implementation("eager")'
            )
        states: list[Tensor] | None = [x] if self.asked("output_hidden_states", output_hidden_states) else None
        rotations: dict[nn.Module, Any] = {}
        masks: dict[tuple[int | None, bool], Mask | None] = {}
        for layer in self.layers:
            attention: Any = layer.self_attn
            rotary, window = attention.rotary, attention.window
            if rotary not in rotations:
                rotations[rotary] = rotary.rotation(position_ids)
            # FlexAttention has no backward pass on a processor, and is slow where it is not compiled.
            seen = (window, x.is_cuda and layer._compiled_call_impl is not None)
            if seen not in masks:
                masks[seen] = mask_for(*seen)
            if attention.eager != eager or attention.record is not attentions:
                attention.eager, attention.record = eager, attentions
            compute = partial(self._gradient_checkpointing_func, layer.__call__) if again else layer
            x = compute(x, rotations[rotary], masks[seen], cache)
            if states is not None:
                states.append(x)
        x = self.norm(x)
        if states is not None:
            states[-1] = x  # as in transformers: the last of them is what the head sees
        out = BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
            **{CACHE: cache},
        )
        return out if self.asked("return_dict", return_dict) else out.to_tuple()

    def _keeps_cache(self, use_cache: bool | None, position_ids: Tensor | None, attention_mask: Tensor | None) -> bool:
        """Whether to give back a new cache: as asked, else as the configuration says.

        Unasked, never in training, and not of several documents in a row, which a cache would not keep apart.
        """
        if use_cache is not None:
            return use_cache
        configured = self.config.use_cache and self.document_end is None
        if self.training or not configured or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return False
        if position_ids is None or position_ids.shape[1] == 1:
            return True
        fits = attention_mask is not None and attention_mask.shape == position_ids.shape
        kept = attention_mask.bool() if attention_mask is not None and fits else None
        return not (_traced() or bool(documents_of(position_ids, kept, gaps=False).any()))


def _rotary(config: ModelConfig) -> nn.Module:
    return ROTARY[config.rotary.type].from_config(config.rotary, config.attention_head_dim)


def _seen(
    x: Float[Tensor, "b t d"],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Any,
    documents: Tensor | None,
) -> tuple[Int[Tensor, "#b t"], Callable[[int | None, bool], Mask | None]]:
    """The tokens' positions, and which keys each of them sees, as a function of a layer's window.

    The function's second argument says whether the layer takes a BlockMask. ``documents``: the number of each token's,
    (b, t); when None, as positions tell.
    """
    time = x.shape[1]
    past, total = extent(time, cache)
    counted = (torch.arange(time, device=x.device) + past)[None]  # (1, t)
    if attention_mask is not None and attention_mask.dim() == 4:
        if tuple(attention_mask.shape[2:]) != (time, total):
            raise ValueError(f"{_MASKS.format(time=time, total=total)}; received {tuple(attention_mask.shape)}")
        mask = attention_mask.to(x.dtype if attention_mask.is_floating_point() else torch.bool)
        given = partial(_windowed, mask, time, past, total)
        return counted if position_ids is None else position_ids, given
    padding = _padding(attention_mask, time, total, fixed=bool(getattr(cache, "is_compileable", False)))
    if documents is None and position_ids is not None and time > 1:
        documents = _documents(position_ids, padding, cache)

    def seen(window: int | None, by_block: bool) -> Mask | None:
        return visible(time, past, window, padding, x.device, total=total, documents=documents, by_block=by_block)

    return counted if position_ids is None else position_ids, seen


def _windowed(mask: Tensor, time: int, past: int | Tensor, total: int, window: int | None, by_block: bool) -> Tensor:
    """A mask (b, 1, t, s) that was given, in a layer's window too: generation makes such masks and knows of none."""
    own = None if window is None else by_element(visible(time, past, window, None, mask.device, total=total))
    if own is None:
        return mask
    return mask & own if mask.dtype == torch.bool else mask.masked_fill(~own, torch.finfo(mask.dtype).min)


_MASKS = (
    "attention_mask must be (batch, {total}): 1 for tokens, 0 for padding; or (batch, 1, {time}, {total}): True where "
    "a query sees a key, or what is added to its score"
)


def _padding(attention_mask: Tensor | None, time: int, total: int, *, fixed: bool) -> Bool[Tensor, "b _"] | None:
    """The mask as booleans; None where nothing is padding, which saves the attention a mask."""
    if attention_mask is None:
        return None
    shape = tuple(attention_mask.shape)
    if len(shape) != 2 or not (time <= shape[1] <= total if fixed else shape[1] == total):
        raise ValueError(f"{_MASKS.format(time=time, total=total)}; received {shape}")
    kept = attention_mask.bool()
    return None if not _traced() and bool(kept.all()) and not fixed else kept


def _documents(position_ids: Tensor, padding: Tensor | None, cache: Any) -> Tensor | None:
    """The number of each token's document; None where every row is one."""
    kept = None if padding is None else padding[:, -position_ids.shape[1] :]
    number = documents_of(position_ids, kept, gaps=cache is None)
    if _traced():  # where the values are not there to be looked at
        return number if cache is None else None
    if not bool(number.any()):
        return None
    if cache is not None:
        raise ValueError(
            "position_ids start again (several documents in a row), which no cache can keep apart: give "
            "use_cache=False and no cache, or one document a row"
        )
    return number


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class LlamaForCausalLM(PreTrainedLlama, GenerationMixin):
    """A language model with next-token loss; a transformers PreTrainedModel that generates.

    Args:
        config: a ModelConfig, plain data, a transformers LlamaConfig or a :class:`LlamaVariantConfig`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True  # tells transformers' Trainer of num_items_in_batch

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        blocks = self.config.blocks
        self.model = LlamaModel(self.config)
        self.lm_head = HEAD[blocks.head.type](blocks)
        self.loss_function = next_token_loss
        self.post_init()

    def get_decoder(self) -> nn.Module:
        """The model without its head."""
        return self.model

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take over a (resized) weight; the head itself stays, with whatever else it does to logits."""
        assert isinstance(self.lm_head, nn.Linear)
        assert isinstance(new_embeddings, nn.Linear)
        self.lm_head.weight = new_embeddings.weight
        self.lm_head.out_features = new_embeddings.weight.shape[0]

    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Int[Tensor, "b t"] | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and the mean next-token loss where labels are given.

        Args:
            input_ids: token ids (b, t).
            attention_mask: (b, s), 0 where a key is padding; without it nothing is. Or (b, 1, t, s): True where
                a query sees a key, or what is added to its score; a layer's window still holds.
            position_ids: (1 or b, t); counted from the cache's end when None. Where they start again within a row,
                another document begins, which sees none of the one before.
            cache: a transformers Cache with the keys and values of earlier positions, which grows or has room for all.
            inputs_embeds: (b, t, d) instead of ``input_ids``.
            labels: token ids (b, t), not shifted; position i is predicted from positions before it; -100 is ignored.
            use_cache: give back a cache, a new one where none is given. When None, as the configuration says, and never
                with labels or in training.
            logits_to_keep: compute logits, and the loss, for the last so many positions only, or for these (a tensor,
                (n,) or (b, n)); for all of them at 0.
            output_attentions: give the attention weights (b, h, t, s) of each layer; needs ``eager`` attention.
            output_hidden_states: give the embeddings, and the state after each layer, the last of them normalised.
            return_dict: False gives a tuple.
            num_items_in_batch: predicted tokens of the whole batch that these rows are part of; the loss is then their
                sum over it, so that accumulated gradients are those of the whole. The mean over these rows without it.
            shift_labels: (b, t), labels that are shifted already, instead of ``labels``.
            past_key_values: what ``cache`` was called before transformers 5.24.
            others: ``token_type_ids``, ``cache_position`` and lengths of packed rows, which change nothing here.

        Returns:
            ``logits`` (b, t, v); ``loss`` in nats per predicted token (b · (t-1) of them), or None; ``hidden_states``
            and ``attentions`` where asked for; and the cache, where one is used, under the name that this version of
            transformers has for it.

        Raises:
            ValueError: for both or neither of ``input_ids`` and ``inputs_embeds``, for a mask of another shape, for
                several documents in a row together with a cache, and for attention weights that no kernel gives.
            TypeError: for any other argument.
        """
        check_known(others)
        if use_cache is None and not (labels is None and shift_labels is None):
            use_cache = False
        out: Any = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            past_key_values,
        )
        logits = self.lm_head(_keep(out.last_hidden_state, logits_to_keep))
        some = not isinstance(logits_to_keep, int) or logits_to_keep > 0
        if labels is not None and shift_labels is None and some:
            shift_labels = next_labels(labels)
        if shift_labels is not None:
            shift_labels = _keep(shift_labels, logits_to_keep)
            loss = self.loss_function(logits, None, num_items_in_batch, shift_labels)
        else:
            loss = None if labels is None else self.loss_function(logits, labels, num_items_in_batch)
        found = {name: out[name] for name in (CACHE, "hidden_states", "attentions") if name in out}
        result = CausalLMOutputWithPast(loss=loss, logits=logits, **found)
        return result if self.asked("return_dict", return_dict) else result.to_tuple()


def _keep(x: Tensor, which: int | Tensor) -> Tensor:
    """Of ``x`` (b, t, …) the last ``which`` positions, all at 0, or those that ``which`` lists, (n,) or (b, n)."""
    if isinstance(which, int):
        return x[:, -which:]
    if which.dim() == 1:
        return x[:, which]
    if which.dim() == 2 and which.dtype != torch.bool:
        return x[torch.arange(len(x), device=x.device)[:, None], which]
    received = f"{which.dtype} of shape {tuple(which.shape)}"
    raise ValueError(f"logits_to_keep must be a number, or positions (n,) or (batch, n); received {received}")


def next_token_loss(
    logits: Float[Tensor, "b t v"],
    labels: Int[Tensor, "b _"] | None,
    num_items: Tensor | int | None = None,
    shift_labels: Int[Tensor, "b t"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each position's logits with the next position's label, in float32.

    Args:
        logits: (b, t, v).
        labels: (b, t), not shifted; -100 is ignored.
        num_items: what the sum is divided by; the number of predicted labels when None.
        shift_labels: (b, t), shifted already: the next position's label for each position; instead of ``labels``.
    """
    # The labels are shifted, not the logits: cutting the last position off would copy all of them.
    targets = next_labels(labels) if shift_labels is None else shift_labels
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)
    return loss if num_items is None else loss / num_items


def next_labels(labels: Int[Tensor, "b t"] | None) -> Int[Tensor, "b t"]:
    """Each position's next label; the last has none."""
    assert labels is not None
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def build_model(
    config: Any,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """A new model with values drawn by (seed, parameter name), the same on every device.

    ``device="meta"`` gives shapes without storage. ``config`` is whatever :meth:`ModelConfig.of` takes. No global
    generator advances: what the constructors of torch's layers draw is replaced.
    """
    config = LlamaVariantConfig(variant=ModelConfig.of(config).to_dict(), seed=seed)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if torch.device(device).type == "meta" else "cpu"):
        model = LlamaForCausalLM(config)
    return nn.Module.to(model, device=device, dtype=dtype)
