"""Parents of random weights in the sizes of known ones, where only sizes matter: nothing is downloaded."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Size:
    """Of a LLaMA."""

    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int


SIZES = {
    "llama-7b": Size(4096, 32, 32, 32, 11008, 32000),
    "llama-3.1-8b": Size(4096, 32, 32, 8, 14336, 128256),
    "1b": Size(2048, 16, 32, 8, 5632, 32000),
    "tiny": Size(64, 4, 4, 2, 176, 500),
}


def random_parent(size: Size, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A LLaMA of this size; its weights keep the stream's scale."""
    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.ffn,
        num_hidden_layers=size.blocks, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    with device:
        parent = LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in parent.parameters():
        weight.data.fill_(1.0) if weight.dim() == 1 else weight.data.normal_(0.0, weight.shape[1] ** -0.5)
    return parent


def clear() -> None:
    """Give back what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
