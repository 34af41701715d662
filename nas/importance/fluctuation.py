"""FLAP's fluctuation: how much of a unit's output a constant cannot stand in for."""

import torch
from torch import Tensor

from nas.evidence import Evidence
from nas.families import layers_of
from nas.importance.scores import UnitScores, of_heads


def fluctuation(evidence: Evidence, block: int) -> UnitScores:
    """FLAP's WIFV (arXiv 2312.11983, eq. 5 and 7): the variance of each column's input times ||W_:j||^2.

    As its authors compute it: in each module the columns' scores, squared for the attention, are standardised
    to mean 0 and variance 1, which is what makes blocks and modules comparable; a head is the mean of its
    columns, and a KV group the mean of its heads.
    """
    layer, activity = layers_of(evidence.parent)[block], evidence.activity[block]
    statistics, shape = evidence.statistics, evidence.shape
    columns = _standard(
        _raw(layer.o_proj.weight, statistics.attention_gram[block], activity.attention_mean) ** 2
    )
    channels = _standard(_raw(layer.down_proj.weight, statistics.ffn_gram[block], activity.ffn_mean))
    heads = columns.view(-1, shape.head_dim).mean(1)
    scores = of_heads(shape, heads, channels)
    return UnitScores(scores.groups / shape.queries_per_group, scores.queries, scores.channels)


def _raw(weight: Tensor, gram: Tensor, mean: Tensor) -> Tensor:
    variance = (gram.diagonal() - mean.square()).clamp_min(0.0)
    return variance * weight.detach().double().square().sum(0)


def _standard(scores: Tensor) -> Tensor:
    spread = scores.std()
    return (scores - scores.mean()) / (spread if float(spread) > 0 else torch.ones_like(spread))
