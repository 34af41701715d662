"""Baichuan's checkpoints of 7B, read as LLaMA's: the same model with the queries, keys and values of a block
stacked in one matrix, `W_pack`.

Transformers has no model of this type, and code that comes with a checkpoint is never run; its tensors are
converted while they are loaded. Baichuan 2 divides the rows of its head by their norms at every step, which
is folded into the weights here. Baichuan's models of 13B have ALiBi biases in place of rotary positions, and
LLaMA has no place for those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from data.errors import InputError

KIND = "baichuan"
NORMED_HEAD_VOCABULARY = 125_696
"""Of Baichuan 2, whose configuration says nothing else of its head."""
_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id",
    "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip


class PackedLlama(LlamaForCausalLM):
    """LLaMA, loaded from tensors of Baichuan's names and shapes."""


register_checkpoint_conversion_mapping(
    PackedLlama.__name__,
    [
        WeightConverter(
            "self_attn.W_pack.weight",
            [f"self_attn.{name}_proj.weight" for name in "qkv"],
            operations=[Chunk(dim=0)],
        )
    ],
    overwrite=True,
)


class PackedConfig(LlamaConfig):
    """LLaMA's configuration, read from a Baichuan's; `normed_head` says that it divides its head's rows."""

    normed_head: bool = False


def read_config(settings: Mapping[str, Any]) -> PackedConfig:
    """The configuration in a Baichuan's config.json; `InputError` for one without rotary positions."""
    if "max_position_embeddings" not in settings:
        raise InputError(
            f"this baichuan, of hidden width {settings.get('hidden_size')}, has ALiBi biases in place of "
            "rotary positions, as those of 13B have, and is not supported; take one of 7B"
        )
    kept = {name: settings[name] for name in _SETTINGS if name in settings}
    config = PackedConfig(**kept, dtype=settings.get("dtype", settings.get("torch_dtype")))
    config.normed_head = "z_loss_weight" in settings or settings.get("vocab_size") == NORMED_HEAD_VOCABULARY
    return config


@torch.no_grad()
def load_model(
    location: str, config: PackedConfig, dtype: torch.dtype | str, revision: str | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A LLaMA like any other, and what transformers says of its loading; `InputError` unless the weights are
    safetensors."""
    try:
        model, loading = PackedLlama.from_pretrained(
            location, config=config, revision=revision, dtype=dtype, output_loading_info=True,
            use_safetensors=True,
        )  # fmt: skip
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise InputError(
            f"{location} has no weights in safetensors; load its pytorch_model.bin once with "
            "torch.load(..., weights_only=True) and write them with safetensors.torch.save_file"
        ) from error
    model.__class__ = LlamaForCausalLM
    model.__dict__.pop("_weight_conversions", None)  # or it would be saved as a Baichuan
    own = model.config  # of all its modules
    normed = own.__dict__.pop("normed_head")
    own.__class__ = LlamaConfig
    if normed:
        head = model.lm_head.weight  # perhaps mapped from its file, and not to be written to
        model.lm_head.weight = nn.Parameter(functional.normalize(head.float()).to(head.dtype), False)
    return model, loading


def load_tokenizer(location: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Of its tokenizer.json; `InputError` where it has only what its own code reads."""
    try:
        return TokenizersBackend.from_pretrained(location, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{location} has no tokenizer.json, and the code that reads its tokenizer.model comes with it "
            "and is never run; convert it where that code is trusted, and put the tokenizer.json there"
        ) from error
