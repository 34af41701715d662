"""The families that are supported, one entry each, and why others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from data.errors import InputError
from nas.families.family import Family
from nas.modeling_subnet import Layout

GUIDE = "docs/add-a-model-family.md"

_EMBEDDINGS_SCALED = (
    "families of gemma multiply their embeddings by the root of the hidden width, so a narrower one would "
    "change them"
)
_MEANS = "its norms subtract the mean of all hidden channels, so that the dropped ones would be missed"
_FACTORS = (
    "phi3 with longrope counts its rotary factors by the hidden width over the heads, so a narrower one is "
    "refused by its own configuration"
)
_NO_NORMS = "its modules read the residual stream without a norm in front, whose gains a narrower one needs"

_SANDWICH = Layout(
    attention_post="post_attention_layernorm",
    mlp_pre="pre_feedforward_layernorm",
    mlp_post="post_feedforward_layernorm",
)
_BEHIND = Layout(
    attention_pre="",
    attention_post="post_attention_layernorm",
    mlp_pre="",
    mlp_post="post_feedforward_layernorm",
)
_C_FC: dict[str, Any] = dict(gated=False, up="c_fc", down="c_proj", activation="act")
_FC: dict[str, Any] = dict(gated=False, up="fc1", down="fc2", activation="activation_fn")
_4H: dict[str, Any] = dict(gated=False, up="dense_h_to_4h", down="dense_4h_to_h", activation="act")
_LN: dict[str, Any] = dict(attention_pre="ln_1", mlp_pre="ln_2")
_FUSED_GATE: dict[str, Any] = dict(gate_up="gate_up_proj", activation="activation_fn")


def _gpt2(config: PreTrainedConfig) -> Family:
    if config.scale_attn_by_inverse_layer_idx:
        raise InputError(
            "this gpt2 scales its attentions by the number of their block (scale_attn_by_inverse_layer_idx), "
            "which changes when blocks are dropped, so it is not supported"
        )
    layout = Layout(
        "transformer.h",
        "attn",
        qkv="c_attn",
        output="c_proj",
        transposed=True,
        width="n_inner",
        **_LN,
        **_C_FC,
    )
    return Family(layout, _MEANS)


def _gpt_neox(config: PreTrainedConfig) -> Family:
    layout = Layout(
        "gpt_neox.layers", "attention", qkv="query_key_value", grouped=True, output="dense",
        parallel=bool(config.use_parallel_residual), **_4H,
    )  # fmt: skip
    return Family(layout, _MEANS)


def _opt(config: PreTrainedConfig) -> Family:
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise InputError(
            "this opt has its norms behind the residual connections, or projects its embeddings (as OPT-350M "
            "does), and is not supported; take another size"
        )
    layout = Layout(
        "model.decoder.layers", output="out_proj", mlp="", attention_pre="self_attn_layer_norm",
        mlp_pre="final_layer_norm", width="ffn_dim", **_FC,
    )  # fmt: skip
    return Family(layout, _MEANS)


def _bloom(config: PreTrainedConfig) -> Family:
    if config.apply_residual_connection_post_layernorm:
        raise InputError(
            "this bloom adds to its normed stream (apply_residual_connection_post_layernorm), so a module "
            "cannot be skipped without the other, and it is not supported"
        )
    if config.slow_but_exact and config.pretraining_tp > 1:
        raise InputError(
            f"this bloom multiplies in {config.pretraining_tp} slices of the hidden width (slow_but_exact), "
            "which a cut head would shift; set slow_but_exact to false in its config.json"
        )
    layout = Layout(
        "transformer.h", "self_attention", qkv="query_key_value", grouped=True, output="dense", alibi=True,
        **{**_4H, "activation": "gelu_impl"},
    )  # fmt: skip
    return Family(layout, _MEANS, by_interface=False)


def _falcon(config: PreTrainedConfig) -> Family:
    norms: dict[str, Any] = {}
    parallel = bool(config.parallel_attn or config.new_decoder_architecture)
    # In falcon's own order: two norms by default in the new architecture, else one, shared.
    two = config.num_ln_in_parallel_attn or (2 if config.new_decoder_architecture else 1)
    if config.new_decoder_architecture and two == 2:
        norms = dict(attention_pre="ln_attn", mlp_pre="ln_mlp")
    elif parallel:
        norms = dict(mlp_pre="input_layernorm")
    layout = Layout(
        "transformer.h", "self_attention", qkv="query_key_value", grouped=True, output="dense",
        alibi=bool(config.alibi), parallel=parallel, width="ffn_hidden_size", **norms, **_4H,
    )  # fmt: skip
    return Family(
        layout,
        _MEANS,
        by_interface=False,
        caches_queries=bool(config.new_decoder_architecture),
    )


def _stablelm(config: PreTrainedConfig) -> Family:
    if config.qk_layernorm:
        raise InputError(
            "this stablelm has a norm of its own for every head (qk_layernorm), which is not supported"
        )
    norms: dict[str, Any] = dict(mlp_pre="input_layernorm") if config.use_parallel_residual else {}
    return Family(Layout(parallel=bool(config.use_parallel_residual), **norms), _MEANS)


def _cohere(config: PreTrainedConfig) -> Family:
    if config.use_qk_norm:
        raise InputError(
            "this cohere has gains of its own for every head (use_qk_norm), which is not supported"
        )
    return Family(Layout(parallel=True, mlp_pre="input_layernorm"), _MEANS)


def _phi3(config: PreTrainedConfig) -> Family:
    factors = (config.rope_parameters or {}).get("short_factor")
    return Family(Layout(qkv="qkv_proj", heads_in_config=True, **_FUSED_GATE), _FACTORS if factors else "")


def _qwen3_moe(config: PreTrainedConfig) -> Family:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise InputError(
            f"this qwen3_moe has plain MLPs in some blocks (mlp_only_layers {config.mlp_only_layers}, "
            f"decoder_sparse_step {config.decoder_sparse_step}), and the blocks of a parent must be alike"
        )
    return Family(Layout(experts=True, width="num_experts"))


FAMILIES: dict[str, Family | Callable[[PreTrainedConfig], Family]] = {
    # laid out like LLaMA
    "llama": Family(narrow_heads=True),
    "mistral": Family(narrow_heads=True),
    "ministral": Family(),
    "qwen2": Family(narrow_heads=True),
    "qwen3": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "helium": Family(),
    "gemma": Family(fixed_hidden=_EMBEDDINGS_SCALED),
    "gemma2": Family(_SANDWICH, _EMBEDDINGS_SCALED),
    "gemma3_text": Family(_SANDWICH, _EMBEDDINGS_SCALED),
    "cohere": _cohere,
    "stablelm": _stablelm,
    # norms behind the modules only; olmo's q/k norms run over all heads at once
    "exaone4": Family(_BEHIND, _NO_NORMS),
    "olmo2": Family(_BEHIND, _NO_NORMS, whole_attention=True),
    "olmo3": Family(_BEHIND, _NO_NORMS, whole_attention=True),
    # fused projections
    "phi3": _phi3,
    "glm4": Family(
        Layout(
            attention_post="post_self_attn_layernorm",
            mlp_post="post_mlp_layernorm",
            **_FUSED_GATE,
        )
    ),
    # no gate
    "nemotron": Family(Layout(gated=False), _MEANS),
    "starcoder2": Family(Layout(**_C_FC), _MEANS),
    "phi": Family(Layout(output="dense", parallel=True, mlp_pre="input_layernorm", **_FC), _MEANS),
    # of the GPT line
    "gpt2": _gpt2,
    "gpt_neo": Family(
        Layout("transformer.h", "attn.attention", "layer_id", output="out_proj", **_LN, **_C_FC),
        _MEANS,
        by_interface=False,
    ),
    "gptj": Family(
        Layout(
            "transformer.h", "attn", output="out_proj", parallel=True, attention_pre="ln_1", mlp_pre="ln_1",
            gated=False, up="fc_in", down="fc_out", activation="act", width="n_inner",
        ),
        _MEANS,
        by_interface=False,
    ),
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "falcon": _falcon,
    "bloom": _bloom,
    # mixtures of experts
    "mixtral": Family(Layout(experts=True, width="num_experts")),
    "qwen3_moe": _qwen3_moe,
}  # fmt: skip

REFUSED: dict[str, str] = {
    "cohere2": "only some of its attentions have rotary positions, by a rule on the number of the block",
    "mpt": "its attention biases are built inside, for all heads at once",
    "gpt_oss": "its experts have biases and its attentions sinks, one for each head",
    "qwen2_moe": "beside its experts it has one that all tokens pass, with a gate of its own",
}

PREFIX = "secateur_"
"""Before the family's name in the model type of a checkpoint that carries its code (see `nas.export`)."""


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a parent's configuration; `InputError` names the supported ones."""
    kind = str(config.model_type)
    if kind in FAMILIES:
        return family_named(kind, config)
    reason = REFUSED.get(kind, "")
    if kind.startswith(PREFIX):
        reason = "it is a subnet whose blocks differ in width, and a parent's must be alike"
    because = f": {reason}" if reason else ""
    raise InputError(
        f"model family {kind!r} is not supported{because}; supported are {', '.join(FAMILIES)}; {GUIDE} says "
        "how one is added"
    )


def family_named(kind: str, config: PreTrainedConfig) -> Family:
    """The family of this name, as the configuration has it."""
    entry = FAMILIES[kind]
    return entry if isinstance(entry, Family) else entry(config)


def family_name(kind: str) -> str:
    """The family behind a model type, which a checkpoint that carries its code puts `PREFIX` before."""
    return kind.removeprefix(PREFIX)


def layout_of(config: PreTrainedConfig) -> Layout:
    """Where a parent, or a subnet as it is loaded from its checkpoint, has its parts."""
    kind = str(config.model_type)
    if kind.startswith(PREFIX):
        return family_named(family_name(kind), config).layout
    return family_of(config).layout
