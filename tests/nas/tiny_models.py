"""Tiny random parents of every family and variant; how they are made and cut is `nas.laws`'."""

import functools

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from nas.families import family_of, layout_of, plain
from nas.laws.case import Case, check_same
from nas.laws.cuts import CUTS, architecture_of_cut
from nas.laws.tiny import random_model, random_ranking, random_tokens
from nas.shape import Shape

__all__ = ["CUTS", "architecture_of_cut", "random_ranking"]

BLOCKS, GROUPS, QUERIES, FFN, VOCAB = 3, 2, 2, 24, 61

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=FFN,
    num_hidden_layers=BLOCKS,
    num_attention_heads=GROUPS * QUERIES,
    num_key_value_heads=GROUPS,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW = 5
"""Of the parents with sliding windows: shorter than the token sequences of the tests."""

# Parent's name -> its settings; the family is the name's part before the first dash.
PARENTS: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-biased": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-mha": dict(num_key_value_heads=4),
    "mistral": dict(head_dim=12, sliding_window=None),
    "mistral-window": dict(sliding_window=WINDOW),
    "ministral": dict(head_dim=12, sliding_window=WINDOW, layer_types=MIXED),
    "qwen2": {},
    "qwen2-window": dict(use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED),
    "qwen3": dict(head_dim=12, attention_bias=True),
    "gemma": dict(head_dim=12),
    "gemma2": dict(head_dim=12, query_pre_attn_scalar=12, sliding_window=WINDOW, layer_types=MIXED),
    "gemma3_text": dict(
        head_dim=12, query_pre_attn_scalar=12, sliding_window=WINDOW, layer_types=MIXED[::-1]
    ),
    "smollm3": dict(
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=MIXED[1:] + MIXED[1:2],
    ),
    "granite": dict(
        residual_multiplier=0.5, attention_multiplier=0.4, embedding_multiplier=2.0, logits_scaling=3.0
    ),
    "helium": dict(head_dim=8),
    "cohere": {},
    "stablelm": dict(use_qkv_bias=True),
    "stablelm-parallel": dict(use_parallel_residual=True),
    "exaone4": dict(head_dim=12, sliding_window=WINDOW, layer_types=MIXED),
    "olmo2": {},
    "olmo3": dict(sliding_window=WINDOW, layer_types=MIXED),
    "phi3": dict(sliding_window=WINDOW),
    "glm4": dict(head_dim=12, attention_bias=True),
    "nemotron": dict(head_dim=12, mlp_bias=True),
    "starcoder2": dict(sliding_window=WINDOW),
    "phi": dict(qk_layernorm=True),
    "gpt2": dict(n_inner=FFN),
    "gpt_neo": dict(attention_types=[[["local", "global", "local"], 1]], window_size=WINDOW),
    "gptj": dict(n_inner=FFN, rotary_dim=4),
    "gpt_neox": {},
    "gpt_neox-serial": dict(use_parallel_residual=False, attention_bias=False),
    "opt": dict(ffn_dim=FFN, word_embed_proj_dim=32),
    "falcon": dict(ffn_hidden_size=FFN),
    "falcon-groups": dict(ffn_hidden_size=FFN, new_decoder_architecture=True, num_kv_heads=GROUPS),
    "falcon-alibi": dict(
        ffn_hidden_size=FFN, alibi=True, multi_query=False, parallel_attn=False, bias=True, num_kv_heads=4
    ),
    "bloom": {},
    "mixtral": dict(num_local_experts=6, sliding_window=WINDOW),
    "qwen3_moe": dict(head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12),
}


def config_of(name: str, **settings: object) -> PreTrainedConfig:
    """The configuration of a parent of `PARENTS`."""
    return AutoConfig.for_model(name.split("-")[0], **{**COMMON, **PARENTS[name], **settings})


NARROWABLE = [name for name in PARENTS if not family_of(config_of(name)).fixed_hidden]
"""Parents whose hidden width can be cut."""
DENSE = [name for name in PARENTS if not layout_of(config_of(name)).experts]
"""Parents whose MLPs are no mixtures of experts."""


def tiny_parent(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object
) -> PreTrainedModel:
    """A parent of `PARENTS` with all weights, norms and biases random, so large that every unit matters."""
    return plain(random_model(config_of(name, **settings), seed, dtype))


@functools.cache
def case_of(name: str) -> Case:
    """What the laws are held against, of a parent of `PARENTS`; shared, so leave it as it is."""
    return Case(config_of(name))


def permuted_parent(name: str) -> tuple[PreTrainedModel, Shape]:
    """A tiny parent in the order of a random ranking, and its shape; shared, so leave it as it is."""
    case = case_of(name)
    with torch.no_grad():
        return case.permuted, case.shape


def same(left: torch.Tensor, right: torch.Tensor) -> None:
    """Equal up to the rounding of another order of summation."""
    check_same(left, right, "tensors")


def tokens(length: int = 12, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random token ids, (batch, length)."""
    return random_tokens(VOCAB, length, batch, seed)
