"""One-pass repair: every repaired output matrix a cut can ask for, computed once from dense statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nas.calibration import Statistics
from nas.families import Layer, layers_of
from nas.linear import prefix_solutions
from nas.shape import Shape


@dataclass(frozen=True)
class Bank:
    """Repaired output matrices by block and choice, and the relative output error each leaves; and query
    projections with fewer queries in each group, whose rows are no prefix of the parent's.

    Keys of `matrices` and `errors` are those of `attention_key` and `mlp_key`. An error is the mean squared
    error of the module's output over calibration tokens, relative to the output's mean square: 0 kept whole,
    1 skipped.
    """

    matrices: Mapping[str, Tensor]
    errors: Mapping[str, float]

    def attention(self, source: int, kv_groups: int, queries_per_group: int) -> Tensor:
        """(hidden, heads * head_dim), in the parent's dtype and on its device."""
        return self.matrices[attention_key(source, kv_groups, queries_per_group)]

    def mlp(self, source: int, ffn: int) -> Tensor:
        """(hidden, ffn), in the parent's dtype and on its device."""
        return self.matrices[mlp_key(source, ffn)]

    def queries(self, source: int, queries_per_group: int) -> tuple[Tensor, Tensor | None]:
        """q_proj with the first queries of every group, (groups * queries * head_dim, hidden), and bias."""
        key = queries_key(source, queries_per_group)
        return self.matrices[key], self.matrices.get(f"{key}.bias")


def queries_key(source: int, queries_per_group: int) -> str:
    """Name of a block's query projection with fewer than all queries in each group."""
    return f"{source}.queries.{queries_per_group}"


def attention_key(source: int, kv_groups: int, queries_per_group: int) -> str:
    """Name of a block's attention choice."""
    return f"{source}.attention.{kv_groups}.{queries_per_group}"


def mlp_key(source: int, ffn: int) -> str:
    """Name of a block's MLP choice."""
    return f"{source}.mlp.{ffn}"


def repair_block(
    parent: PreTrainedModel,
    shape: Shape,
    statistics: Statistics,
    source: int,
    heads: Mapping[int, tuple[int, ...]],
    widths: tuple[int, ...],
) -> Bank:
    """The bank of one block of the permuted parent.

    `heads` maps each choice of queries per group to its choices of KV groups, `widths` are the FFN choices.
    """
    grams = statistics.attention_gram[source], statistics.ffn_gram[source]
    return repair_layer(layers_of(parent)[source], shape, *grams, source, heads, widths)


@torch.no_grad()
def repair_layer(
    layer: Layer,
    shape: Shape,
    attention_gram: Tensor,
    ffn_gram: Tensor,
    source: int,
    heads: Mapping[int, tuple[int, ...]],
    widths: tuple[int, ...],
    put: Callable[[Tensor], Tensor] = lambda matrix: matrix,
) -> Bank:
    """The same from a block, permuted, and its Gram matrices, also permuted. Every matrix is `put` where it
    is to be kept before the next is computed."""
    matrices: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    out = layer.o_proj.weight.detach()
    for queries, groups in heads.items():
        heads_of = torch.arange(out.shape[1], device=out.device).view(shape.kv_groups, -1, shape.head_dim)
        first, rest = (heads_of[:, :queries].flatten(), heads_of[:, queries:].flatten())
        order = torch.cat([first, rest])
        if queries < shape.queries_per_group:
            query = layer.q_proj
            matrices[queries_key(source, queries)] = put(query.weight.detach()[first].contiguous())
            if query.bias is not None:
                matrices[f"{queries_key(source, queries)}.bias"] = put(
                    query.bias.detach()[first].contiguous()
                )
        widths_of = {count: count * queries * shape.head_dim for count in groups}
        repaired, error = _prefixes(
            out[:, order], attention_gram[order][:, order], set(widths_of.values()), put
        )
        for count, width in widths_of.items():
            key = attention_key(source, count, queries)
            matrices[key], errors[key] = repaired[width], error[width]
    if layer.layout.experts:
        errors |= _missing_experts(ffn_gram, source, widths)
        return Bank(matrices, errors)
    repaired, error = _prefixes(layer.down_proj.weight.detach(), ffn_gram, set(widths), put)
    for width in widths:
        key = mlp_key(source, width)
        matrices[key], errors[key] = repaired[width], error[width]
    return Bank(matrices, errors)


def _missing_experts(inner: Tensor, source: int, widths: tuple[int, ...]) -> dict[str, float]:
    """Relative errors of keeping the first experts: the mean square of what the others added, as if nobody
    took their tokens. `inner` (experts, experts) are mean inner products of what they add. Experts have no
    repaired matrices."""
    whole = float(inner.sum()) or 1.0
    return {mlp_key(source, width): float(inner[width:, width:].sum()) / whole for width in widths}


def _prefixes(
    weight: Tensor, gram: Tensor, widths: set[int], put: Callable[[Tensor], Tensor]
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """Repaired matrices and relative errors for prefixes of these widths; the full one is `weight` itself."""
    projected, inverse, error = prefix_solutions(weight, gram)
    repaired = {
        k: put(
            weight
            if k == weight.shape[1]
            else (projected[:, :k] @ inverse[:k, :k]).to(weight.dtype).contiguous()
        )
        for k in widths
    }
    whole = float(error[0]) or 1.0
    return repaired, {k: float(error[k]) / whole for k in widths}
