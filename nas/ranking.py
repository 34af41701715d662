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
from nas.families import blocks_of
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
    for index, block in enumerate(blocks_of(permuted)):
        reorder_heads(block, shape, ranking.groups[index], ranking.queries[index])
        reorder_channels(block, ranking.channels[index])
    return permuted


def reorder_heads(block: nn.Module, shape: Shape, groups: Tensor, queries: Tensor) -> None:
    """Put the heads of a block, changed in place, into the order of groups (G,) and queries (G, Q)."""
    attention = block.self_attn
    q_rows, kv_rows = head_columns(shape, groups, queries)
    _reorder(attention.q_proj, rows=q_rows)
    _reorder(attention.k_proj, rows=kv_rows)
    _reorder(attention.v_proj, rows=kv_rows)
    _reorder(attention.o_proj, columns=q_rows)


def reorder_channels(block: nn.Module, channels: Tensor) -> None:
    """Put the FFN channels of a block, changed in place, into an order (P,)."""
    _reorder(block.mlp.gate_proj, rows=channels)
    _reorder(block.mlp.up_proj, rows=channels)
    _reorder(block.mlp.down_proj, columns=channels)


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
