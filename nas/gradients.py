"""Gradients of the language-modelling loss: what Taylor criteria are computed from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from nas.families import OUTPUTS, layers_of
from nas.placement import check_whole


@dataclass(frozen=True)
class BlockGradients:
    """Of one block, by projection name (`q_proj`, ...), float32.

    `mean` (rows, columns) is the gradient g of the mean loss over windows, `square` (rows, columns) the
    empirical Fisher diagonal, the mean of squared gradients of single windows. `signed` and `absolute`
    (windows, lines) hold, window by window, the sums of g w and |g w| over each line: a row, or a column of
    an output matrix.
    """

    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    signed: Mapping[str, Tensor]
    absolute: Mapping[str, Tensor]


def lines(name: str, matrix: Tensor) -> Tensor:
    """A projection's entries summed over each line that belongs to one unit: (rows,), or (columns,) of an
    output matrix, in float64."""
    return matrix.double().sum(0 if name in OUTPUTS else 1)


def measure_gradients(parent: PreTrainedModel, windows: Tensor) -> tuple[BlockGradients, ...]:
    """One backward pass for each of `windows` (n, seq_len), in a float32 copy of the parent.

    Float32 because gradients of the order of 1e-5 have squares that vanish in half precision
    (horseee/LLM-Pruner#23: element-1 and mix gave the same perplexity).
    """
    check_whole(parent, "a backward pass")
    model = copy.deepcopy(parent).float().requires_grad_(False).eval()
    watched = [dict(layer.projections()) for layer in layers_of(model)]
    for block in watched:
        for linear in block.values():
            linear.weight.requires_grad_(True)
    zeros = [{name: torch.zeros_like(m.weight.data) for name, m in block.items()} for block in watched]
    mean, square = zeros, [{name: value.clone() for name, value in block.items()} for block in zeros]
    signed: list[dict[str, list[Tensor]]] = [{name: [] for name in block} for block in watched]
    absolute: list[dict[str, list[Tensor]]] = [{name: [] for name in block} for block in watched]
    for window in windows:
        ids = window[None].to(model.device)
        with torch.enable_grad():
            logits = model(ids, use_cache=False).logits
            functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).backward()
        for index, block in enumerate(watched):
            for name, linear in block.items():
                gradient, weight = linear.weight.grad, linear.weight.data
                assert gradient is not None
                mean[index][name] += gradient / len(windows)
                square[index][name] += gradient.square() / len(windows)
                signed[index][name].append(lines(name, gradient * weight))
                absolute[index][name].append(lines(name, (gradient * weight).abs()))
                linear.weight.grad = None
    return tuple(
        BlockGradients(
            mean[index],
            square[index],
            {name: torch.stack(rows) for name, rows in signed[index].items()},
            {name: torch.stack(rows) for name, rows in absolute[index].items()},
        )
        for index in range(len(watched))
    )
