"""Scores of the units of one block: what every criterion returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.shape import Shape

MLP_LINES = ("gate_proj", "up_proj", "down_proj")
"""Projections whose lines make an FFN channel; some families have no gate."""


@dataclass(frozen=True)
class UnitScores:
    """Importance in one block, float64, larger is more important: of KV groups (G,), of the queries in each
    group (G, Q) and of FFN channels (P,). Scores compare units of the same kind in the same block; whether
    they compare blocks, or heads with channels, is for the criterion to say."""

    groups: Tensor
    queries: Tensor
    channels: Tensor


def of_heads(shape: Shape, heads: Tensor, channels: Tensor, shared: Tensor | None = None) -> UnitScores:
    """Scores of query heads (H,) and channels (P,); a group's score is the sum of its heads' and, where
    given, of what its heads share, its keys and values (G,)."""
    queries = heads.double().view(shape.kv_groups, shape.queries_per_group)
    groups = queries.sum(1)
    return UnitScores(groups if shared is None else groups + shared.double(), queries, channels.double())


def of_lines(shape: Shape, scored: Mapping[str, Tensor]) -> UnitScores:
    """Scores of coupled structures (LLM-Pruner, arXiv 2305.11627, sec. 3.1): each unit's sum over its rows of
    the input projections and its columns of the output matrix. `scored` holds the scores of the lines of each
    projection by name, (rows,), or (columns,) of o_proj and down_proj."""

    def by(name: str) -> Tensor:
        return scored[name].double().view(-1, shape.head_dim).sum(1)

    return of_heads(
        shape,
        by("q_proj") + by("o_proj"),
        torch.stack([scored[name] for name in MLP_LINES if name in scored]).sum(0),
        shared=by("k_proj") + by("v_proj"),
    )


def as_if_ranked(order: Tensor, cost: Tensor) -> Tensor:
    """Scores (n,) that sort into an `order` of removal (n,), first out first: the sum of the costs (n,) up to
    and with each removal, made to rise where it does not."""
    total = cost.double().cumsum(0)
    least, risen = 0.0, []
    for value in total.tolist():
        least = max(value, math.nextafter(least, math.inf))
        risen.append(least)
    scores = torch.empty_like(total)
    scores[order] = total.new_tensor(risen)
    return scores
