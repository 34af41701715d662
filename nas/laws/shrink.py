"""From the configuration of a real model to a tiny one that computes the same things.

Widths, depth, vocabulary and the reach of positions and windows become small; every switch stays as it is:
biases, ties, kinds of norms, groups or single queries, partial rotary embeddings, layer types.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from nas.families import family_of

BLOCKS, HIDDEN, HEADS, FFN, VOCAB, POSITIONS, WINDOW, EXPERTS = 3, 32, 4, 24, 61, 64, 5, 6

Changes = dict[str, tuple[Any, Any]]
"""Setting -> its value before and after."""

_DROPPED = ("architectures", "auto_map", "dtype", "model_type", "quantization_config", "transformers_version")


def tiny_config(config: PreTrainedConfig) -> tuple[PreTrainedConfig, Changes]:
    """A tiny configuration of the same family and switches, and what was changed.

    Raises `InputError` for an unsupported family.
    """
    family = family_of(config)
    before = {
        name: value for name, value in config.to_dict().items()
        if name not in _DROPPED and not name.startswith("_")
    }  # fmt: skip
    own = config.attribute_map
    heads, groups = _heads(config)
    head_dim = _head_dim(config)
    after: dict[str, Any] = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": BLOCKS, "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        family.layout.width: EXPERTS if family.layout.experts else FFN,
    }  # fmt: skip
    if "num_key_value_heads" in before:
        after["num_key_value_heads"] = groups
    after = {own.get(name, name): value for name, value in after.items()}
    after |= {
        name: value
        for name, value in _others(config, head_dim, groups).items()
        if name in before and (before[name] is not None or name == "head_dim")
    }
    after |= _by_block(before, config.num_hidden_layers)
    if isinstance(before.get("rope_parameters"), dict):
        after["rope_parameters"] = _rope(before["rope_parameters"], head_dim)
    elif "rope_parameters" in before:
        del before["rope_parameters"]  # the family's own
    tokens: dict[str, Any] = {name: None for name in before if name.endswith("_token_id")}
    tokens |= {name: value for name, value in (("bos_token_id", 1), ("eos_token_id", 2)) if name in tokens}
    after |= tokens
    tiny = type(config)(**{**before, **after})
    changes = {
        name: (before.get(name), value)
        for name, value in after.items()
        if before.get(name) != value and name not in tokens
    }
    return tiny, changes


def _heads(config: PreTrainedConfig) -> tuple[int, int]:
    """Query heads of the real model, and KV groups of the tiny one: all, one or some."""
    heads = int(config.num_attention_heads)
    groups = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    return heads, HEADS if groups == heads else 1 if groups == 1 else HEADS // 2


def _head_dim(config: PreTrainedConfig) -> int:
    """The tiny model's: one that its heads fill the hidden width with, unless the real model's do not."""
    declared = config.to_dict().get("head_dim")
    if isinstance(getattr(type(config), "head_dim", None), property) or not declared:
        return HIDDEN // HEADS
    return HIDDEN // HEADS if declared * config.num_attention_heads == config.hidden_size else 12


def _others(config: PreTrainedConfig, head_dim: int, groups: int) -> dict[str, Any]:
    """Settings that some families have, for those that do."""
    whole = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    root = (whole / head_dim) ** 0.5

    def of(name: str, least: float = 0.0, most: float = float("inf")) -> float:
        return min(max(float(getattr(config, name, None) or least), least), most)

    return {
        "head_dim": head_dim,
        "num_kv_heads": groups,
        "word_embed_proj_dim": HIDDEN,
        "query_pre_attn_scalar": head_dim,
        "rotary_dim": 4,
        "partial_rotary_factor": _even(of("partial_rotary_factor", most=1.0), head_dim),
        "sliding_window": WINDOW,
        "window_size": WINDOW,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": int(of("num_experts_per_tok", 1, 2)),
        "moe_intermediate_size": 12,
        # Of the same weight beside a tiny model's scores, or its units would not matter.
        "attention_multiplier": min(of("attention_multiplier") * root, 0.5),
        "embedding_multiplier": of("embedding_multiplier", most=2.0),
        "residual_multiplier": of("residual_multiplier", 0.5),
        "rms_norm_eps": of("rms_norm_eps", most=1e-6),
    }


def _by_block(settings: dict[str, Any], depth: int) -> dict[str, Any]:
    """Lists of one entry for each block, for as many blocks as there are kinds, in their order."""
    lists = {
        name: value for name, value in settings.items() if isinstance(value, list) and len(value) == depth
    }
    kinds = list(zip(*lists.values(), strict=True)) if lists else [()] * depth
    firsts = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]][:BLOCKS]
    others = [index for index in range(depth) if index not in firsts]
    chosen = sorted([*firsts, *others][:BLOCKS])
    shorter: dict[str, Any] = {name: [value[index] for index in chosen] for name, value in lists.items()}
    if "attention_layers" in shorter:  # gpt_neo's, which it works out from this
        shorter["attention_types"] = [[[kind], 1] for kind in shorter["attention_layers"]]
    return shorter


def _rope(parameters: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Rotary settings, or those of each layer type, for heads of this width and texts of few positions."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {
            kind: _rope(value, head_dim) if isinstance(value, dict) else value
            for kind, value in parameters.items()
        }
    new = dict(parameters)
    width = head_dim
    if new.get("partial_rotary_factor"):
        new["partial_rotary_factor"] = _even(float(new["partial_rotary_factor"]), head_dim)
        width = int(head_dim * new["partial_rotary_factor"])
    if new.get("original_max_position_embeddings"):
        new["original_max_position_embeddings"] = POSITIONS // 2
    for name in ("short_factor", "long_factor"):
        if new.get(name):
            new[name] = list(new[name])[: width // 2]
    return new


def _even(share: float, head_dim: int) -> float:
    """About this share of a head, so that it is an even number of channels."""
    return max(2, 2 * round(share * head_dim / 2)) / head_dim
