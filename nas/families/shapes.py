"""Read the shape of a parent from its own tensors."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.families.layer import Layer, layers_of
from nas.families.table import GUIDE, family_of
from nas.modeling_subnet import head_dim_of
from nas.shape import Shape


def count(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def _check(layer: Layer, index: int) -> None:
    """Raise `InputError` unless the block has what its family's layout says, and a cut can slice its
    projections; subclasses pack or wrap their weights."""
    names = [layer.path(name) for name in layer.names]
    experts = ("mlp.gate", "mlp.experts") if layer.layout.experts else ()
    for path in (*names, *experts, *layer.layout.attention_norms, *layer.layout.mlp_norms):
        try:
            found = layer.module.get_submodule(path)
        except AttributeError as error:
            raise InputError(
                f"block {index}, a {type(layer.module).__name__}, has no module {path!r}, which its family's "
                f"entry in nas/families/table.py names; see {GUIDE}"
            ) from error
        if path in names and type(found) is not nn.Linear:
            raise InputError(
                f"{path} of block {index} is a {type(found).__name__}, not a plain linear map; dequantise "
                "the parent, or merge its adapters, first (`nas.families.plain` takes fused ones apart)"
            )


def shape_of(model: PreTrainedModel) -> Shape:
    """Read the shape of a uniform parent from its own tensors (shapes only: the meta device will do).

    Raises `InputError` for an unsupported family or a parent whose blocks differ in width.
    """
    family, layers = family_of(model.config), layers_of(model)
    for index, layer in enumerate(layers):
        _check(layer, index)
    first = layers[0]
    attention, lay = first.attention, first.layout
    head_dim = head_dim_of(attention)
    kv_groups = first.k_proj.out_features // head_dim
    queries = first.q_proj.out_features // head_dim // kv_groups
    ffn = width_of(first)
    for index, layer in enumerate(layers):
        if (layer.q_proj.out_features, layer.k_proj.out_features) != (
            kv_groups * queries * head_dim,
            kv_groups * head_dim,
        ):
            raise InputError(
                f"block {index} of the parent differs in heads from block 0; parents must be uniform"
            )
        if width_of(layer) != ffn:
            raise InputError(
                f"block {index} of the parent differs in width from block 0; parents must be uniform"
            )
    heads = kv_groups * queries
    per_group = (count([first.k_proj]) + count([first.v_proj])) // kv_groups
    per_query = count([first.q_proj]) // heads + first.o_proj.weight.numel() // heads
    per_channel, mlp = _mlp(first, ffn)
    norms = {name: count([first.module.get_submodule(name)]) for name in _norms(first)}
    own_norms = [
        module for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
        if (module := getattr(attention, name, None)) is not None
    ]  # fmt: skip
    hidden = int(model.config.hidden_size)
    experts = int(first.mlp.gate.top_k) if lay.experts else 0
    attention_norms = sum(norms[name] for name in lay.attention_norms)
    return Shape(
        family=str(model.config.model_type),
        hidden=hidden,
        blocks=len(layers),
        kv_groups=kv_groups,
        queries_per_group=queries,
        head_dim=head_dim,
        ffn=ffn,
        vocab=int(model.config.vocab_size),
        per_group=per_group,
        per_query=per_query,
        attention_fixed=count([attention]) + attention_norms - kv_groups * per_group - heads * per_query,
        per_channel=per_channel,
        mlp_fixed=mlp + sum(norms[name] for name in lay.mlp_norms) - ffn * per_channel,
        outside=count([model]) - count([layer.module for layer in layers]),
        head_norms=count(own_norms),
        shared_norms=sum(norms.values()) - attention_norms - sum(norms[name] for name in lay.mlp_norms),
        lines=_lines(first),
        experts_per_token=experts,
        whole_attention=family.whole_attention,
        caches_queries=family.caches_queries,
    )


def width_of(layer: Layer) -> int:
    """FFN channels, or experts."""
    return int(layer.mlp.experts.num_experts if layer.layout.experts else layer.down_proj.in_features)


def _mlp(layer: Layer, ffn: int) -> tuple[int, int]:
    """Parameters of an FFN channel or an expert, and of the whole MLP without its norms."""
    if layer.layout.experts:
        return count([layer.mlp]) // ffn, count([layer.mlp])
    parts = [*layer.inputs("mlp"), layer.down_proj]
    return (count(layer.inputs("mlp")) + layer.down_proj.weight.numel()) // ffn, count(parts)


def _lines(layer: Layer) -> int:
    """How many vectors over the hidden channels belong to one FFN channel or expert."""
    if layer.layout.experts:
        return 1 + 3 * int(layer.mlp.experts.down_proj.shape[-1])
    return len(layer.inputs("mlp")) + 1


def _norms(layer: Layer) -> set[str]:
    lay = layer.layout
    return {name for name in (lay.attention_pre, lay.attention_post, lay.mlp_pre, lay.mlp_post) if name}
