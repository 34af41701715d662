"""Rank the units of a parent once, and permute the parent so that every subnet is a prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.calibration import Statistics
from nas.families import blocks_of
from nas.importance import Criterion
from nas.shape import Shape


@dataclass(frozen=True)
class Ranking:
    """Orders, most important first, per block: KV groups (G,), queries within each group (G, Q), in the
    group's own numbering, and FFN channels (P,)."""

    groups: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    channels: tuple[Tensor, ...]


def rank(
    parent: PreTrainedModel,
    shape: Shape,
    statistics: Statistics,
    criterion: Criterion,
    progress: Callable[[int], object] = lambda done: None,
) -> Ranking:
    """Order the units of every block by a criterion; `progress` is told of each finished block."""
    groups, queries, channels = [], [], []
    width = shape.queries_per_group * shape.head_dim  # columns of o_proj that belong to one KV group
    for block, attention_gram, ffn_gram in zip(
        blocks_of(parent), statistics.attention_gram, statistics.ffn_gram, strict=True
    ):
        out = block.self_attn.o_proj.weight.detach()
        groups.append(criterion(out, attention_gram, width))
        inside = []
        for group in range(shape.kv_groups):
            columns = slice(group * width, (group + 1) * width)
            inside.append(criterion(out[:, columns], attention_gram[columns, columns], shape.head_dim))
        queries.append(torch.stack(inside))
        channels.append(criterion(block.mlp.down_proj.weight.detach(), ffn_gram, 1))
        progress(1)
    return Ranking(tuple(groups), tuple(queries), tuple(channels))


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
    for index, block in enumerate(blocks_of(permuted)):
        attention, mlp = block.self_attn, block.mlp
        q_rows, kv_rows = head_columns(shape, ranking.groups[index], ranking.queries[index])
        _reorder(attention.q_proj, rows=q_rows)
        _reorder(attention.k_proj, rows=kv_rows)
        _reorder(attention.v_proj, rows=kv_rows)
        _reorder(attention.o_proj, columns=q_rows)
        _reorder(mlp.gate_proj, rows=ranking.channels[index])
        _reorder(mlp.up_proj, rows=ranking.channels[index])
        _reorder(mlp.down_proj, columns=ranking.channels[index])
    return permuted


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
