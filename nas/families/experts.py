"""What the experts of a mixture add to the residual stream, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS = 256
"""How many tokens are taken at a time: their outputs of all experts must fit into memory."""


def contributions(
    experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Iterator[Tensor]:
    """Weighted outputs (tokens, experts, hidden) of one group of tokens after the other; zeros where a token
    does not visit an expert. The arguments are those that a mixture calls its experts with: (tokens, hidden)
    and twice (tokens, experts per token)."""
    count = int(experts.num_experts)
    for x, index, weight in zip(
        hidden_states.split(TOKENS), top_k_index.split(TOKENS), top_k_weights.split(TOKENS), strict=True
    ):
        outputs = x.new_zeros(len(x), count, x.shape[-1])
        for expert in index.unique().tolist():
            token, place = torch.where(index == expert)
            gate, up = functional.linear(x[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
            out = functional.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
            outputs[token, expert] = out * weight[token, place, None].to(out.dtype)
        yield outputs
