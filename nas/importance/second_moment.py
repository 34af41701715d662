"""The depth-2 second moment in the form its authors print: a gated MLP as the product of two modules."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.evidence import Evidence
from nas.families import MLP, Layer, layers_of
from nas.importance.output_energy import output_energy
from nas.importance.scores import UnitScores, of_heads


def second_moment(evidence: Evidence, block: int) -> UnitScores:
    """Greedy Output Approximation (arXiv 2407.19126, sec. 3 and app. B): for a channel
    M_j = ||D_:j||^2 (U_j^T S U_j) * ||D_:j||^2 (G_j^T S G_j) with S = E[x x^T] of the MLP's input, which
    leaves out that gate and up are correlated and that the gate is bent (`output_energy` is the exact form);
    for a head the sum over its columns of ||O_:j||^2 E[o_j^2]."""
    layer, shape = layers_of(evidence.parent)[block], evidence.shape
    heads = output_energy(
        layer.o_proj.weight.detach(), evidence.statistics.attention_gram[block], shape.head_dim
    )
    gram = evidence.activity[block].mlp_input_gram
    return of_heads(shape, heads, product_form(layer, gram))


def product_form(layer: Layer, gram: Tensor) -> Tensor:
    """Scores (P,) of the channels of an MLP whose input has the Gram matrix `gram` (hidden, hidden): the
    product over the projections that read it, one where there is no gate."""
    passed = layer.down_proj.weight.detach().double().square().sum(0)
    scores = torch.ones_like(passed)
    for linear in layer.inputs(MLP):
        rows = linear.weight.detach().double()
        scores = scores * passed * ((rows @ gram) * rows).sum(1)
    return scores
