"""How alike the heads of a block attend: Jensen-Shannon divergence between their attention probabilities."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from nas.shape import Shape


@torch.no_grad()
def head_divergence(attention: nn.Module, arguments: Mapping[str, Any], normed: Sequence[Tensor]) -> Tensor:
    """Mean Jensen-Shannon divergence in nats between the attention rows of every two heads, (H, H) float64.

    D_ij = mean over windows and query positions of JS(p_i || p_j) (Greedy Output Approximation, arXiv
    2407.19126, sec. 3.1), on the module's normed inputs in batches (batch, seq_len, hidden). `arguments` are
    the keywords its block passes to it. Probabilities take eager attention: (H, seq_len, seq_len) floats for
    a window at a time.
    """
    eager = copy.copy(attention)
    if "config" in attention.__dict__:  # bloom's is always eager, and needs none
        eager.config = copy.copy(attention.config)
        eager.config._attn_implementation = "eager"
    total, windows = torch.zeros((), dtype=torch.float64), 0
    for batch in normed:
        mask = arguments.get("attention_mask")
        if mask is None:  # what the fused kernels know without being told
            ahead = torch.full((batch.shape[1],) * 2, torch.finfo(batch.dtype).min, device=batch.device)
            mask = ahead.triu(1)[None, None].to(batch.dtype)
        elif mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=batch.dtype).masked_fill(~mask, torch.finfo(batch.dtype).min)
        for window in batch:
            given = {**arguments, "attention_mask": mask}
            probabilities = eager(hidden_states=window[None], **given)[1]
            if probabilities is None:
                raise InputError(f"{type(attention).__name__} gives no attention probabilities")
            total = total.to(batch.device) + _divergence(probabilities[0].double())
            windows += 1
    return total / windows


def _divergence(rows: Tensor) -> Tensor:
    """(H, positions, keys) probabilities -> (H, H): entropy of the mean minus mean of the entropies."""
    entropy = torch.special.entr(rows).sum(-1)  # (H, positions)
    pairs = [torch.special.entr((rows + row) / 2).sum(-1) - (entropy + own) / 2
             for row, own in zip(rows, entropy, strict=True)]  # fmt: skip
    return torch.stack(pairs).clamp_min(0.0).mean(-1)


def group_divergence(shape: Shape, heads: Tensor) -> Tensor:
    """Between KV groups, (G, G), from that between heads (H, H): the mean over pairs of their queries."""
    grid = heads.view(shape.kv_groups, shape.queries_per_group, shape.kv_groups, shape.queries_per_group)
    return grid.mean((1, 3))


def redundant(
    divergence: Tensor, importance: Tensor, threshold: float, *, literal: bool = False
) -> list[int]:
    """Units that another, alike one can stand in for, in the order they are found (alg. 2 of the paper).

    All ordered pairs are scanned; where the divergence (n, n) is below `threshold` and neither unit is a
    candidate yet, the less important of both (n,) becomes one; with `literal` the first of the pair, as the
    algorithm is printed.
    """
    found: list[int] = []
    for i in range(len(divergence)):
        for j in range(len(divergence)):
            if i != j and i not in found and j not in found and float(divergence[i, j]) < threshold:
                found.append(i if literal or importance[i] <= importance[j] else j)
    return found
