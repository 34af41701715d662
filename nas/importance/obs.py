"""Optimal-brain-surgeon saliences of single weights, summed over a unit's rows and columns."""

import torch
from torch import Tensor

from nas.evidence import Evidence
from nas.families import layers_of
from nas.gradients import lines
from nas.importance.scores import UnitScores, of_lines
from nas.linear import damped


def obs(evidence: Evidence, block: int) -> UnitScores:
    """The scores of `obs_lines` summed over heads and channels."""
    return of_lines(evidence.shape, obs_lines(evidence, block))


def obs_lines(evidence: Evidence, block: int) -> dict[str, Tensor]:
    """Search for Efficient LLMs (arXiv 2409.17372, eq. 2 and 3): the salience of a weight is
    W_ij^2 / [(2 X X^T)^-1]_jj with X the input of its projection; by projection its sum over each row of the
    input projections (rows,) and each column of the output matrices (columns,)."""
    activity, statistics = evidence.activity[block], evidence.statistics
    grams = {
        "q_proj": activity.attention_input_gram,
        "up_proj": activity.mlp_input_gram,
        "o_proj": statistics.attention_gram[block],
        "down_proj": statistics.ffn_gram[block],
    }
    inverse = {name: _diagonal_of_inverse(gram) for name, gram in grams.items()}
    inverse |= {"k_proj": inverse["q_proj"], "v_proj": inverse["q_proj"], "gate_proj": inverse["up_proj"]}
    return {
        name: lines(name, 2.0 * linear.weight.detach().double().square() / inverse[name])
        for name, linear in layers_of(evidence.parent)[block].projections()
    }


def _diagonal_of_inverse(gram: Tensor) -> Tensor:
    return torch.linalg.inv(damped(gram)).diagonal()
