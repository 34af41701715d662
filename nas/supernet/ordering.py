"""Order a parent once, so that the prefixes of it are its best subnets.

arXiv 2410.06479 orders by mean activation, as Minitron (arXiv 2407.14679) does. Its scripts sum the scores of
heads and channels over all layers and put every layer into one common order, although channel i of one layer
has nothing to do with channel i of another; here every block has an order of its own. Only the hidden width,
which all blocks share, has one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from nas.block_importance import BlockCriterion, influence
from nas.evidence import Evidence
from nas.importance import Criterion
from nas.ranking import permute, rank
from nas.residual import measure_stream, permute_stream, rotate_stream

STREAMS: dict[str, Callable[[PreTrainedModel, Tensor, int], PreTrainedModel]] = {
    "activation": lambda parent, windows, size: permute_stream(
        parent, measure_stream(parent, windows, batch_size=size).order
    ),
    "rotation": lambda parent, windows, size: rotate_stream(
        parent, measure_stream(parent, windows, batch_size=size).basis
    ),
    "none": lambda parent, windows, size: parent,
}
"""What is done to the hidden channels, by name; a rotation unties a tied head (see `nas.residual`)."""


@dataclass(frozen=True)
class Ordered:
    """A parent whose units are in order of importance, and its blocks, most important first."""

    model: PreTrainedModel
    blocks: tuple[int, ...]


def order(
    evidence: Evidence, criterion: Criterion, stream: str, blocks: BlockCriterion = influence
) -> Ordered:
    """A copy of the evidence's parent in order: KV groups, queries and FFN channels of every block by the
    criterion, hidden channels as `STREAMS` names it, blocks by a criterion of theirs. Its logits are the
    parent's."""
    scores = blocks(evidence)
    ordered = sorted(range(len(scores)), key=lambda block: -scores[block])
    streamed = STREAMS[stream](evidence.parent, evidence.windows, evidence.batch_size)
    return Ordered(permute(streamed, evidence.shape, rank(evidence, criterion)), tuple(ordered))
