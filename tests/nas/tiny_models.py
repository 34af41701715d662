"""Tiny random parents of every family, and architectures that cut them in every way there is."""

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nas.architecture import Architecture, Block
from nas.families import family_of, layout_of, plain, shape_of
from nas.ranking import Ranking, permute
from nas.shape import Shape

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
    model = AutoModelForCausalLM.from_config(config_of(name, **settings), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(noise * (0.5 if "embed" in key else 1.5 / weight.shape[-1] ** 0.5))
            elif key.endswith("bias"):
                weight.copy_(noise * 0.5)
            else:
                weight.add_(noise * 0.3)  # norms: about 1, or about 0 where the family adds the 1 itself
    return plain(model)


@functools.cache
def permuted_parent(name: str) -> tuple[PreTrainedModel, Shape]:
    """A tiny parent in the order of a random ranking, and its shape; shared, so leave it as it is."""
    parent = tiny_parent(name)
    shape = shape_of(parent)
    return permute(parent, shape, random_ranking(shape)), shape


def random_ranking(shape: Shape, seed: int = 0) -> Ranking:
    """Orders drawn at random."""
    draw = torch.Generator().manual_seed(seed)

    def order(n: int) -> torch.Tensor:
        return torch.randperm(n, generator=draw)

    return Ranking(
        tuple(order(shape.kv_groups) for _ in range(shape.blocks)),
        tuple(
            torch.stack([order(shape.queries_per_group) for _ in range(shape.kv_groups)])
            for _ in range(shape.blocks)
        ),
        tuple(order(shape.ffn) for _ in range(shape.blocks)),
    )


def tokens(length: int = 12, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random token ids, (batch, length)."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


CUTS = (
    "narrow",
    "uniform",
    "shallow",
    "one block",
    "no first attention",
    "other kind first",
    "no middle attention",
    "no mlp",
    "only skips",
    "all at once",
)


def architecture_of_cut(cut: str, shape: Shape) -> Architecture:
    """One of the things (`CUTS`) that a cut can do to a parent of three blocks."""
    g, q, f = shape.kv_groups, shape.queries_per_group, shape.ffn
    one, few = max(1, g // 2), max(1, q - 1)
    if shape.whole_attention:
        one, few = g, q
    less, some, odd, little = (f - 8, 16, 7, 8) if not shape.experts_per_token else (f - 2, 3, 2, 3)

    def of(*blocks: tuple[int, int, int, int]) -> Architecture:
        return Architecture(shape.hidden, tuple(Block(*block) for block in blocks))

    return {
        "narrow": of((0, one, q, less), (1, g, few, f), (2, g, q, odd)),
        "uniform": of((0, one, q, some), (1, one, q, some), (2, one, q, some)),
        "shallow": of((1, g, q, f), (2, g, q, f)),
        "one block": of((1, g, few, little)),
        "no first attention": of((0, 0, 0, f), (1, g, q, f), (2, one, q, f)),
        "other kind first": of((0, 0, 0, f), (1, g, few, f)),
        "no middle attention": of((0, g, q, f), (1, 0, 0, little), (2, g, q, f)),
        "no mlp": of((0, g, q, 0), (1, g, q, f), (2, g, few, 0)),
        "only skips": of((0, 0, 0, f), (1, g, q, 0), (2, g, q, f)),
        "all at once": of((0, 0, 0, odd + 2), (2, one, few, 0)),
    }[cut]
