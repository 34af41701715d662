"""Rank the units of a parent once, and permute the parent so that every subnet is a prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.calibration import Statistics
from nas.evidence import Evidence
from nas.families import MLP, Layer, layers_of
from nas.importance import Criterion, UnitScores
from nas.shape import Shape


@dataclass(frozen=True)
class Ranking:
    """Orders, most important first, per block: KV groups (G,), queries within each group (G, Q), in the
    group's own numbering, and FFN channels (P,)."""

    groups: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    channels: tuple[Tensor, ...]


def rank(
    evidence: Evidence, criterion: Criterion, progress: Callable[[int], object] = lambda done: None
) -> Ranking:
    """Order the units of every block by a criterion; `progress` is told of each finished block."""
    scores = []
    for block in range(evidence.shape.blocks):
        scores.append(criterion(evidence, block))
        progress(1)
    return ranking_of(scores)


def ranking_of(scores: Sequence[UnitScores]) -> Ranking:
    """The orders that the scores of all blocks say; equal ones keep the parent's order."""

    def order(values: Tensor) -> Tensor:
        return values.argsort(dim=-1, descending=True, stable=True)

    return Ranking(
        tuple(order(block.groups) for block in scores),
        tuple(order(block.queries) for block in scores),
        tuple(order(block.channels) for block in scores),
    )


def head_columns(shape: Shape, groups: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of q_proj (= columns of o_proj) and rows of k_proj (= v_proj) in ranked order.

    (G * Q * D,) and (G * D,), for a ranking's groups (G,) and queries (G, Q).
    """
    inner = torch.arange(shape.head_dim, device=groups.device)
    heads = groups[:, None] * shape.queries_per_group + queries[groups]  # (G, Q)
    q_rows = (heads[:, :, None] * shape.head_dim + inner).flatten()
    kv_rows = (groups[:, None] * shape.head_dim + inner).flatten()
    return q_rows, kv_rows


def permute(parent: PreTrainedModel, shape: Shape, ranking: Ranking) -> PreTrainedModel:
    """A copy of the parent with its units in ranked order; its logits are the parent's up to rounding."""
    permuted = copy.deepcopy(parent).requires_grad_(False)
    for index, layer in enumerate(layers_of(permuted)):
        reorder_heads(layer, shape, ranking.groups[index], ranking.queries[index])
        reorder_channels(layer, ranking.channels[index])
    return permuted


def reorder_heads(layer: Layer, shape: Shape, groups: Tensor, queries: Tensor) -> None:
    """Put the heads of a block, changed in place, into the order of groups (G,) and queries (G, Q)."""
    q_rows, kv_rows = head_columns(shape, groups, queries)
    _reorder(layer.q_proj, rows=q_rows)
    _reorder(layer.k_proj, rows=kv_rows)
    _reorder(layer.v_proj, rows=kv_rows)
    _reorder(layer.o_proj, columns=q_rows)
    if shape.whole_attention:  # its q/k norms have a gain for each channel of each head
        for norm, rows in ((layer.attention.q_norm, q_rows), (layer.attention.k_norm, kv_rows)):
            norm.weight.data = norm.weight.data[rows].contiguous()
    if layer.layout.alibi:
        layer.attention.heads = layer.attention.heads[q_rows[:: shape.head_dim] // shape.head_dim]


def reorder_channels(layer: Layer, channels: Tensor) -> None:
    """Put the FFN channels of a block, or its experts, changed in place, into an order (P,)."""
    if layer.layout.experts:
        gate, experts = layer.mlp.gate, layer.mlp.experts
        for weight in (gate.weight, experts.gate_up_proj, experts.down_proj):
            weight.data = weight.data[channels].contiguous()
        return
    for linear in layer.inputs(MLP):
        _reorder(linear, rows=channels)
    _reorder(layer.down_proj, columns=channels)


def permute_statistics(shape: Shape, statistics: Statistics, ranking: Ranking) -> Statistics:
    """The statistics of the permuted parent, without running it."""
    attention, ffn = [], []
    for index in range(shape.blocks):
        rows, _ = head_columns(shape, ranking.groups[index], ranking.queries[index])
        attention.append(statistics.attention_gram[index][rows][:, rows])
        channels = ranking.channels[index]
        ffn.append(statistics.ffn_gram[index][channels][:, channels])
    return Statistics(tuple(attention), tuple(ffn), statistics.influence, statistics.tokens)


def _reorder(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Permute a projection in place (of a copy that this module owns)."""
    if rows is not None:
        linear.weight.data = linear.weight.data[rows].contiguous()
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[rows].contiguous()
    if columns is not None:
        linear.weight.data = linear.weight.data[:, columns].contiguous()
