"""Where each model family keeps its projections, and which families are supported.

All families here share module names (`model.layers`, `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`);
they differ in their norms, in biases and in how a module's output joins the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from data.errors import InputError
from nas.shape import Shape


@dataclass(frozen=True)
class Family:
    """What a family does differently from LLaMA: the names of a block's norms, mostly.

    A module (attention or MLP) adds `post(module(pre(stream)))` to the residual stream; `post` is absent in
    most families. The norms of a skipped module go with it. The hidden width can be cut where the family is
    `narrowable`: where no constant of the model hangs on it; channels inside heads where there are
    `narrow_heads`: where the attention is LLaMA's, as `nas.modeling_subnet` has it.
    """

    attention_pre: str = "input_layernorm"
    attention_post: str | None = None
    mlp_pre: str = "post_attention_layernorm"
    mlp_post: str | None = None
    narrowable: bool = True
    narrow_heads: bool = False

    @property
    def attention_norms(self) -> tuple[str, ...]:
        """Norms that belong to the attention."""
        return tuple(name for name in (self.attention_pre, self.attention_post) if name)

    @property
    def mlp_norms(self) -> tuple[str, ...]:
        """Norms that belong to the MLP."""
        return tuple(name for name in (self.mlp_pre, self.mlp_post) if name)

    def check_narrowable(self) -> None:
        """Raise `InputError` unless the hidden width can be cut."""
        if not self.narrowable:
            raise InputError(
                "families of gemma multiply their embeddings by the root of the hidden width, so a narrower "
                "one would change them; keep all hidden channels"
            )


_SANDWICH = Family(
    narrowable=False,
    attention_post="post_attention_layernorm",
    mlp_pre="pre_feedforward_layernorm",
    mlp_post="post_feedforward_layernorm",
)

FAMILIES: dict[str, Family] = {
    "llama": Family(narrow_heads=True),
    "mistral": Family(narrow_heads=True),
    "ministral": Family(),
    "qwen2": Family(narrow_heads=True),
    "qwen3": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "helium": Family(),
    "gemma": Family(narrowable=False),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
}

_ALL_HEAD_NORM = "its q/k norms run over all heads at once, so a cut head would change the heads that stay"
REFUSED: dict[str, str] = {
    "olmo2": _ALL_HEAD_NORM,
    "olmo3": _ALL_HEAD_NORM,
    "cohere": "attention and MLP run in parallel from one norm, which is not implemented yet",
    "stablelm": "its attention and MLP may run in parallel from one norm, which is not implemented yet",
    "exaone4": "its norms sit behind the modules only, which is not implemented yet",
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration; `InputError` names the supported ones."""
    kind = str(config.model_type)
    if kind in FAMILIES:
        return FAMILIES[kind]
    reason = REFUSED.get(kind, "")
    if kind.startswith("secateur_"):  # see nas.export
        reason = "it is a subnet whose blocks differ in width, and a parent's must be alike"
    because = f": {reason}" if reason else ""
    raise InputError(f"model family {kind!r} is not supported{because}; supported are {', '.join(FAMILIES)}")


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, in order."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(f"{type(model).__name__} has no decoder layers at model.layers")
    return layers


def part_norms(block: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The norms of a block by name; a missing one raises `InputError`."""
    missing = [name for name in names if not hasattr(block, name)]
    if missing:
        raise InputError(f"{type(block).__name__} has no module {missing[0]!r}")
    return [getattr(block, name) for name in names]


PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def _check_projections(block: nn.Module, index: int) -> None:
    """Raise `InputError` unless a cut can slice the projections; subclasses pack or wrap their weights."""
    for part, names in PROJECTIONS.items():
        for name in names:
            projection = getattr(getattr(block, part, None), name, None)
            if type(projection) is not nn.Linear:
                raise InputError(
                    f"{part}.{name} of block {index} is a {type(projection).__name__}, not a plain linear "
                    "map; dequantise the parent, or merge its adapters, first"
                )


def count(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def shape_of(model: PreTrainedModel) -> Shape:
    """Read the shape of a uniform parent from its own tensors (shapes only: the meta device will do).

    Raises `InputError` for an unsupported family or a parent whose blocks differ in width.
    """
    family = family_of(model.config)
    layers = blocks_of(model)
    for index, block in enumerate(layers):
        _check_projections(block, index)
    first = layers[0]
    attention, mlp = first.self_attn, first.mlp
    head_dim = int(attention.head_dim)
    kv_groups = attention.k_proj.out_features // head_dim
    queries = attention.q_proj.out_features // head_dim // kv_groups
    for index, block in enumerate(layers):
        widths = (block.self_attn.q_proj.out_features, block.self_attn.k_proj.out_features)
        if widths != (kv_groups * queries * head_dim, kv_groups * head_dim):
            raise InputError(
                f"block {index} of the parent differs in heads from block 0; parents must be uniform"
            )
        if block.mlp.down_proj.in_features != mlp.down_proj.in_features:
            raise InputError(
                f"block {index} of the parent differs in width from block 0; parents must be uniform"
            )
    ffn = int(mlp.down_proj.in_features)
    q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    heads = kv_groups * queries
    per_group = (count([k]) + count([v])) // kv_groups
    per_query = count([q]) // heads + o.weight.numel() // heads
    per_channel = (count([mlp.gate_proj]) + count([mlp.up_proj]) + mlp.down_proj.weight.numel()) // ffn
    norms = count(part_norms(first, family.attention_norms))
    head_norms = [module for name in ("q_norm", "k_norm") if (module := getattr(attention, name, None))]
    in_blocks = count([layers])
    return Shape(
        family=str(model.config.model_type),
        hidden=int(model.config.hidden_size),
        blocks=len(layers),
        kv_groups=kv_groups,
        queries_per_group=queries,
        head_dim=head_dim,
        ffn=ffn,
        vocab=int(model.config.vocab_size),
        per_group=per_group,
        per_query=per_query,
        attention_fixed=count([attention]) + norms - kv_groups * per_group - heads * per_query,
        per_channel=per_channel,
        mlp_fixed=count([mlp]) + count(part_norms(first, family.mlp_norms)) - ffn * per_channel,
        outside=count([model]) - in_blocks,
        head_norms=count(head_norms),
    )
