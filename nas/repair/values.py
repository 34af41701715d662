"""Refit what heads carry: values and output columns of a cut attention together, by least squares."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nas.blockwise import Reached
from nas.calibration import GramSum
from nas.families import Layer
from nas.linear import factorise, strength

CAPTURE = "secateur_capture"
"""Name under which `_capture` is registered as an attention implementation."""


def refit_values(
    layer: Layer,
    arguments: Mapping[str, Any],
    inputs: Sequence[Tensor],
    residual: Sequence[Tensor],
    damping: float,
) -> Sequence[Tensor]:
    """Refit v_proj and o_proj of a block in place, KV group by KV group; returns the residual left.

    With a head's attention pattern P fixed, it adds O V (P x) to the stream: a map of rank head_dim of the
    attended input z = P x. Where heads were cut, those that stay had better carry other directions of z than
    they did. For one group, whose queries share V, this is min E||r - sum_q O_q V z_q||^2 with r what the
    other groups leave of the target: reduced-rank regression (Izenman 1975) for one query, alternating least
    squares from the present weights for several. Damping pulls the products O_q V towards the present ones.

    `inputs` are the normed inputs in batches (batch, seq_len, hidden), `residual` the target minus the
    attention's present output, batch by batch. Takes the memory of Q further streams.
    """
    calls = [attention_call(layer.attention, arguments, x) for x in inputs]
    queries = calls[0][0].shape[1] // calls[0][1].shape[1]
    groups = calls[0][1].shape[1]
    dim = layer.v_proj.out_features // groups
    has_bias = layer.v_proj.bias is not None
    for group in range(groups):
        rows = slice(group * dim, (group + 1) * dim)
        columns = slice(group * dim * queries, (group + 1) * dim * queries)
        value = layer.v_proj.weight[rows].double()  # (D, d), with the bias as one more column
        if has_bias:
            value = torch.cat([value, layer.v_proj.bias[rows, None].double()], dim=1)
        out = layer.o_proj.weight[:, columns].double().view(-1, queries, dim).transpose(0, 1)  # (Q, d, D)
        present = out @ value  # (Q, d, d)
        gram, cross = GramSum(), GramSum()
        attends = [attended(layer, call, x, group) for call, x in zip(calls, inputs, strict=True)]
        for z, rest in zip(attends, residual, strict=True):  # z is (batch, seq_len, Q, d)
            gram.add(z.flatten(-2))
            cross.add(rest + _through(z, present), z.flatten(-2))
        width = value.shape[1]
        mean = gram.take()  # the largest matrix of all, (Q d, Q d): changed in place
        pull = strength(mean, damping)
        mean.diagonal().add_(pull)
        grams = mean.view(queries, width, queries, width).transpose(1, 2)  # (Q, Q, d, d)
        crosses = cross.take().view(-1, queries, width).transpose(0, 1)  # (Q, d, d)
        new_out, new_value = factorise(grams, crosses + pull * present, out, value)
        del mean, grams, crosses  # before the next group's are summed
        change = present - new_out @ new_value
        residual = [rest + _through(z, change) for rest, z in zip(residual, attends, strict=True)]
        dtype = layer.v_proj.weight.dtype
        layer.v_proj.weight.data[rows] = (new_value[:, :-1] if has_bias else new_value).to(dtype)
        if has_bias:
            layer.v_proj.bias.data[rows] = new_value[:, -1].to(dtype)
        layer.o_proj.weight.data[:, columns] = new_out.transpose(0, 1).flatten(1).to(dtype)
    return residual


Call = tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]
"""What a model hands to its attention function: queries, keys, mask, and keywords."""


def attention_call(attention: nn.Module, arguments: Mapping[str, Any], x: Tensor) -> Call:
    """Queries and keys as they meet, rotated and normed, for normed inputs x (batch, seq_len, hidden)."""
    config = attention.config
    implementation = config._attn_implementation
    config._attn_implementation = CAPTURE
    try:
        attention(hidden_states=x, **arguments)
    except _Captured as captured:
        return captured.call
    finally:
        config._attn_implementation = implementation
    raise RuntimeError(f"{type(attention).__name__} does not go through transformers' attention interface")


def attended(layer: Layer, call: Call, x: Tensor, group: int) -> Tensor:
    """What each query head of a KV group attends to: its pattern times the input itself.

    (batch, seq_len, Q, hidden), with a column of ones behind where values have a bias. Patterns are those of
    the model's own attention function, so that windows, masks and caps are all in them.
    """
    query, key, mask, keywords = call
    attention = layer.attention
    eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    queries = query.shape[1] // key.shape[1]
    values = x if layer.v_proj.bias is None else torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    heads = slice(group * queries, (group + 1) * queries)
    z, _ = function(attention, query[:, heads], key[:, group : group + 1], values[:, None], mask, **keywords)
    result: Tensor = z
    return result


def _through(z: Tensor, maps: Tensor) -> Tensor:
    """sum_q M_q z_q, (batch, seq_len, hidden), for maps M (Q, hidden, d)."""
    return z.flatten(-2).float() @ maps.transpose(0, 1).flatten(1).float().T


class _Captured(Reached):
    """Carries the arguments of the attention function."""

    def __init__(self, call: Call) -> None:
        self.call = call


def _capture(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    raise _Captured((query, key, attention_mask, keywords))


AttentionInterface.register(CAPTURE, _capture)
