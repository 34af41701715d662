"""Cut a subnet out of the permuted parent: views of its storage, in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from data.errors import InputError
from nas.adapters import AdaptedEmbedding
from nas.architecture import Architecture, Block
from nas.families import FAMILIES, Family, Layer, family_of, layers_of
from nas.modeling_subnet import (
    cache_slots,
    keep_biases,
    narrow,
    set_config,
    set_heads,
    skip_attention,
    skip_mlp,
)
from nas.placement import owned
from nas.shape import Shape, check_fits
from nas.surgery import cut_norm, hold, linear_of, opened, shell, sliced, writer

RotaryOrders = Sequence[Tensor]
"""For each block, the rotary pairs of each KV group, most important first, (kv_groups, head_dim / 2); pair i:
channels i and i + head_dim / 2 of all heads of its group."""

ChannelOrders = Sequence[Tensor]
"""For each block, its FFN channels, most important first, (ffn,)."""


class OutputMatrices(Protocol):
    """Where a cut takes its output matrices from (see `nas.repair.bank`)."""

    def attention(self, source: int, kv_groups: int, queries_per_group: int) -> Tensor:
        """(hidden, kv_groups * queries_per_group * head_dim)."""

    def mlp(self, source: int, ffn: int) -> Tensor:
        """(hidden, ffn)."""

    def queries(self, source: int, queries_per_group: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of q_proj with the first queries of every group, where these are not all: rows
        (kv_groups * queries_per_group * head_dim, hidden) of all of the parent's groups."""


def cut(
    parent: PreTrainedModel,
    shape: Shape,
    architecture: Architecture,
    bank: OutputMatrices | None = None,
    *,
    rotary: RotaryOrders | None = None,
    channels: ChannelOrders | None = None,
    own: bool = False,
    gradients: bool = False,
) -> PreTrainedModel:
    """The subnet of a permuted parent.

    Weights are prefix views of the parent's and, with a `bank`, its repaired output matrices: nothing is
    copied, except query rows where not all queries of a group are kept, the gains of norms where fewer hidden
    channels are, and projections of heads that are kept in part: the first pairs of the `rotary` orders. With
    `channels` the parent need not be permuted: MLPs are copies of their first ones. `own=True` copies all, so
    that the subnet can be trained or outlive the parent (see `owned`). `gradients=True` keeps the way back:
    what the subnet's loss says of its weights becomes gradients of the parent's; they are no parameters of
    it. The parent is not changed. `InputError` for what does not fit, `ValueError` for a bank with channels.
    """
    with torch.set_grad_enabled(gradients):
        subnet = _cut(parent, shape, architecture, bank, rotary, channels)
    return owned(subnet) if own else subnet


def _cut(
    parent: PreTrainedModel,
    shape: Shape,
    architecture: Architecture,
    bank: OutputMatrices | None,
    rotary: RotaryOrders | None,
    channels: ChannelOrders | None,
) -> PreTrainedModel:
    check_fits(architecture, shape)
    if bank is not None and channels is not None:
        raise ValueError("a bank holds the repairs of prefixes, not of the channels that orders put first")
    family = family_of(parent.config)
    hidden = architecture.hidden
    config = copy.copy(parent.config)
    for name, value in depth_settings(parent.config, architecture).items():
        setattr(config, name, value)
    subnet = shell(parent)
    subnet.config = config
    *path, last = family.layout.layers.split(".")
    holder = subnet
    for name in path:
        new = shell(getattr(holder, name))
        if "config" in new.__dict__:
            new.config = config
        if "rotary_emb" in new._modules:
            # Some position embeddings keep what the longest text they met asked for.
            new.rotary_emb = shell(new.rotary_emb)
        setattr(holder, name, new)
        holder = new
    if hidden < shape.hidden:
        family.check_narrowable()
        for name, value in width_settings(parent.config, shape, hidden).items():
            setattr(config, name, value)
        _cut_ends(subnet, config)
    if any(block.head_width for block in architecture.blocks):
        _check_narrow_heads(family, shape, rotary)
    kinds = getattr(config, "layer_types", None) or [None] * len(architecture.blocks)
    slots = cache_slots(kinds, [block.kv_groups > 0 for block in architecture.blocks])
    layers = layers_of(parent)
    blocks = (
        _cut_block(layers[block.source], config, shape, hidden, block, slot, bank, rotary, channels)
        for block, slot in zip(architecture.blocks, slots, strict=True)
    )
    setattr(holder, last, nn.ModuleList(blocks))
    return subnet


def depth_settings(config: PreTrainedConfig, architecture: Architecture) -> dict[str, Any]:
    """The settings of a configuration that follow the kept blocks: how many, and the lists of one entry each.

    The layer type of a block without attention decides nothing but the kind of its place in the KV cache; it
    becomes that of the first block with attention, so that the cache's first place is one that is used.
    """
    settings: dict[str, Any] = {"num_hidden_layers": len(architecture.blocks)}
    for name in ("layer_types", "no_rope_layers", "attention_layers"):
        values = getattr(config, name, None)
        if values is not None:
            settings[name] = [values[block.source] for block in architecture.blocks]
    if hasattr(config, "output_router_logits"):
        settings["output_router_logits"] = False  # their loss counts on as many experts in every block
    if "attention_layers" in settings:  # gpt_neo's, which it works out from this
        settings["attention_types"] = [[[kind], 1] for kind in settings["attention_layers"]]
    kinds = settings.get("layer_types")
    if kinds is not None:
        attends = [block.kv_groups > 0 for block in architecture.blocks]
        first = kinds[attends.index(True)]
        settings["layer_types"] = [kind if has else first for kind, has in zip(kinds, attends, strict=True)]
    return settings


def width_settings(config: PreTrainedConfig, shape: Shape, hidden: int) -> dict[str, Any]:
    """The settings of a configuration that follow the hidden width.

    The epsilon of the norms is that of a mean square, which over fewer channels grows (see `_cut_norm`); with
    it the epsilon does, unless norms inside the heads, which stay as wide, go by the same one.
    """
    settings: dict[str, Any] = {"hidden_size": hidden}
    if not isinstance(getattr(type(config), "head_dim", None), property):
        settings["head_dim"] = shape.head_dim  # some families else divide the hidden width by the heads kept
    if hidden < shape.hidden and not shape.head_norms:
        settings["rms_norm_eps"] = config.rms_norm_eps * shape.hidden / hidden
    return settings


def _cut_block(
    layer: Layer,
    config: PreTrainedConfig,
    shape: Shape,
    hidden: int,
    block: Block,
    slot: int,
    bank: OutputMatrices | None,
    rotary: RotaryOrders | None,
    channels: ChannelOrders | None,
) -> nn.Module:
    layout = layer.layout
    new = Layer(shell(layer.module), layout)
    if hidden < shape.hidden:
        for name in {*layout.attention_norms, *layout.mlp_norms}:
            setattr(new.module, name, cut_norm(getattr(layer.module, name), config))
    opened(new.module, layout.attention)
    if block.kv_groups:
        _cut_attention(new, layer, shape, hidden, block, slot, bank)
        if block.head_width and rotary:
            _cut_heads(new, shape, block, rotary[block.source])
    else:
        skip_attention(new.module, layout)
    if block.ffn:
        if layout.mlp:
            opened(new.module, layout.mlp)
        _cut_mlp(new, layer, hidden, block, bank, None if channels is None else channels[block.source])
    else:
        skip_mlp(new.module, layout)
    set_config(new.module, config, layout, block.heads)
    return new.module


def _cut_attention(
    new: Layer, layer: Layer, shape: Shape, hidden: int, block: Block, slot: int, bank: OutputMatrices | None
) -> None:
    """Give an attention, a shell, the first KV groups and queries."""
    attention = new.attention
    setattr(attention, new.layout.slot, slot)
    set_heads(attention, block.kv_groups, block.queries_per_group, shape.head_dim)
    kv = block.kv_groups * shape.head_dim
    new.put("k_proj", sliced(layer.k_proj, slice(kv), slice(hidden)))
    new.put("v_proj", sliced(layer.v_proj, slice(kv), slice(hidden)))
    inner = block.heads * shape.head_dim
    if block.queries_per_group == shape.queries_per_group:
        kept: slice | Tensor = slice(inner)
    else:
        kept = kept_query_rows(shape, block, layer.q_proj.weight.device)
    if new.layout.alibi:
        first = kept_query_rows(shape, block, attention.heads.device)[:: shape.head_dim] // shape.head_dim
        keep_biases(attention, attention.heads[first], attention.parent_heads)
    if bank is not None and isinstance(kept, Tensor):
        weight, bias = bank.queries(block.source, block.queries_per_group)
        new.put(
            "q_proj", linear_of(layer.q_proj, weight[:inner, :hidden], None if bias is None else bias[:inner])
        )
    else:
        new.put("q_proj", sliced(layer.q_proj, kept, slice(hidden)))
    if bank is not None:
        out = bank.attention(block.source, block.kv_groups, block.queries_per_group)
        new.put("o_proj", writer(layer.o_proj, out, hidden))
    else:
        new.put("o_proj", sliced(layer.o_proj, slice(hidden), kept))


def _cut_heads(new: Layer, shape: Shape, block: Block, order: Tensor) -> None:
    """Leave the heads of an attention, a shell, the first rotary pairs of this order, in copies."""
    pairs = order[: block.kv_groups, : (block.head_width or 0) // 2].to(new.q_proj.weight.device)
    kept = inside_heads(shape, pairs, block.queries_per_group)
    kept_kv = inside_heads(shape, pairs, 1)
    for name, rows in (("q_proj", kept), ("k_proj", kept_kv), ("v_proj", kept_kv)):
        new.put(name, sliced(new.projection(name), rows, slice(None)))
    new.put("o_proj", sliced(new.o_proj, slice(None), kept))
    narrow(new.attention, pairs.contiguous())


def inside_heads(shape: Shape, pairs: Tensor, heads: int) -> Tensor:
    """Places of the channels of these rotary pairs (groups, pairs) in each of so many heads of every group,
    whose `head_dim` channels lie one head after another: (groups * heads * 2 * pairs,)."""
    channels = torch.cat([pairs, pairs + shape.head_dim // 2], 1)  # (groups, width)
    first = torch.arange(len(pairs) * heads, device=pairs.device).view(len(pairs), heads, 1) * shape.head_dim
    return (first + channels[:, None]).flatten()


def _check_narrow_heads(family: Family, shape: Shape, rotary: RotaryOrders | None) -> None:
    """Raise `InputError` unless heads can be cut in part, by these orders."""
    if not family.narrow_heads:
        supported = ", ".join(
            name for name, other in FAMILIES.items() if isinstance(other, Family) and other.narrow_heads
        )
        raise InputError(
            f"heads of {shape.family} cannot be kept in part, since its attention is not LLaMA's; keep whole "
            f"heads, or take a parent of {supported}"
        )
    if rotary is None:
        raise InputError("heads are kept in part, but nothing says which rotary pairs; give their orders")
    expected = [(shape.kv_groups, shape.head_dim // 2)] * shape.blocks
    found = [tuple(order.shape) for order in rotary]
    if found != expected:
        raise InputError(
            f"the orders of rotary pairs have shapes {found}; give {expected[0]} for each of "
            f"{shape.blocks} blocks"
        )


def _cut_mlp(
    new: Layer, layer: Layer, hidden: int, block: Block, bank: OutputMatrices | None, order: Tensor | None
) -> None:
    """Give an MLP, a shell, its first channels, or the first of an order (ffn,), or its first experts."""
    if new.layout.experts:
        _cut_experts(new.mlp, hidden, block.ffn)
        return
    kept = slice(block.ffn) if order is None else order[: block.ffn]
    for name in new.names:
        if name in ("gate_proj", "up_proj"):
            new.put(name, sliced(layer.projection(name), kept, slice(hidden)))
    if bank is None:
        new.put("down_proj", sliced(layer.down_proj, slice(hidden), kept))
    else:
        new.put("down_proj", writer(layer.down_proj, bank.mlp(block.source, block.ffn), hidden))


def _cut_experts(mlp: nn.Module, hidden: int, count: int) -> None:
    """Leave a mixture, a shell, its first experts on the first hidden channels: views."""
    mlp.gate, mlp.experts = shell(mlp.gate), shell(mlp.experts)
    mlp.gate.num_experts = mlp.experts.num_experts = count
    mlp.gate.hidden_dim = mlp.experts.hidden_dim = hidden
    hold(mlp.gate, "weight", mlp.gate.weight[:count, :hidden])
    hold(mlp.experts, "gate_up_proj", mlp.experts.gate_up_proj[:count, :, :hidden])
    hold(mlp.experts, "down_proj", mlp.experts.down_proj[:count, :hidden])


def kept_query_rows(shape: Shape, block: Block, device: torch.device) -> Tensor:
    """Rows of the permuted q_proj (columns of o_proj) that a block keeps: the first queries of the first
    groups, (heads * head_dim,)."""
    rows = torch.arange(shape.kv_groups * shape.queries_per_group * shape.head_dim, device=device)
    grid = rows.view(shape.kv_groups, shape.queries_per_group, shape.head_dim)
    return grid[: block.kv_groups, : block.queries_per_group].flatten()


def _cut_ends(subnet: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Embeddings, final norm and head on the first hidden channels; a tied head stays tied."""
    embedding, head, hidden = subnet.model.embed_tokens, subnet.lm_head, config.hidden_size
    new = shell(embedding)
    new.embedding_dim = hidden
    hold(new, "weight", embedding.weight[:, :hidden])
    if isinstance(embedding, AdaptedEmbedding):
        hold(new, "down", embedding.down[:, :hidden])
    subnet.model.embed_tokens = new
    subnet.model.norm = cut_norm(subnet.model.norm, config)
    subnet.lm_head = sliced(head, slice(None), slice(hidden))
    if head.weight is embedding.weight:
        hold(subnet.lm_head, "weight", new.weight)
