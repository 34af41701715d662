"""What a criterion is, and how those that look at one output matrix at a time become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import InputError
from nas.evidence import Evidence
from nas.families import Layer, layers_of
from nas.importance.scores import UnitScores

Score = Callable[[Evidence, int], UnitScores]
"""The units of one block of a parent, by its index, scored."""

ModuleScore = Callable[[Tensor, Tensor, int], Tensor]
"""`(weight, gram, unit) -> scores`: a module's output matrix (d, n * unit), the mean outer product of its
input (n * unit, n * unit), and how many neighbouring columns make one unit; scores (n,)."""


@dataclass(frozen=True)
class Criterion:
    """A score, and what is promised of it beside the contract (`nas.importance.contract`).

    `invariant`: the scores of channels and heads do not change when a channel's column of the output matrix
    is multiplied and the row that feeds it divided by the same number, which changes nothing in what the
    network computes. `experts`: it can score those of a mixture, which have no rows and columns of their own.
    `gradients`: it needs those of the whole parent, which then must be whole on its device.
    """

    score: Score
    invariant: bool
    experts: bool = False
    gradients: bool = False

    def __call__(self, evidence: Evidence, block: int) -> UnitScores:
        """The scores; `InputError` for a mixture of experts that the criterion cannot score."""
        if evidence.shape.experts_per_token and not self.experts:
            raise InputError(
                f"this criterion scores FFN channels, and {evidence.shape.family} has {evidence.shape.ffn} "
                "experts in their place; choose output_energy, elimination, wanda or random"
            )
        return self.score(evidence, block)


def of_outputs(score: ModuleScore) -> Score:
    """A criterion that sees nothing but an output matrix and the Gram matrix of its input: KV groups as
    units of the attention, then the queries inside each group, and FFN channels."""

    def scored(evidence: Evidence, block: int) -> UnitScores:
        shape, layer = evidence.shape, layers_of(evidence.parent)[block]
        gram = evidence.statistics.attention_gram[block]
        out = layer.o_proj.weight.detach()
        width = shape.queries_per_group * shape.head_dim  # columns of o_proj that belong to one KV group
        inside = []
        for group in range(shape.kv_groups):
            columns = slice(group * width, (group + 1) * width)
            inside.append(score(out[:, columns], gram[columns, columns], shape.head_dim))
        return UnitScores(
            groups=score(out, gram, width),
            queries=torch.stack(inside),
            channels=_channels(score, layer, evidence.statistics.ffn_gram[block]),
        )

    return scored


def _channels(score: ModuleScore, layer: Layer, gram: Tensor) -> Tensor:
    """FFN channels, or experts: to a score these are outputs of their own, whose inner products it sees."""
    if layer.layout.experts:
        return score(torch.eye(len(gram), dtype=gram.dtype, device=gram.device), gram, 1)
    return score(layer.down_proj.weight.detach(), gram, 1)
