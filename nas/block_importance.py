"""How much whole blocks matter: criteria by name, each an array (blocks,) from the evidence on a parent."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.evaluate import evaluate
from nas.evidence import Evidence
from nas.shape import Shape
from nas.subnet import cut

BlockCriterion = Callable[[Evidence], NDArray[np.float64]]
"""Larger is more important; finite, the same for the same evidence, and the parent is left as it is."""


def influence(evidence: Evidence) -> NDArray[np.float64]:
    """1 - the mean cosine between what enters and what leaves a block (ShortGPT, arXiv 2403.03853, eq. 1)."""
    return np.array(evidence.statistics.influence)


def drop_one_loss(evidence: Evidence) -> NDArray[np.float64]:
    """The loss in nats per token without a block (SLEB, arXiv 2402.09025, sec. 3.3, its first round)."""
    losses = losses_without(
        evidence.parent, evidence.shape, evidence.windows, range(evidence.shape.blocks),
        batch_size=evidence.batch_size,
    )  # fmt: skip
    return np.array([losses[block] for block in range(evidence.shape.blocks)])


BLOCK_CRITERIA: dict[str, BlockCriterion] = {
    "influence": influence,
    "drop_one_loss": drop_one_loss,
}


def losses_without(
    parent: PreTrainedModel,
    shape: Shape,
    windows: Tensor,
    candidates: Collection[int],
    gone: Collection[int] = (),
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[int, float]:
    """The mean negative log-likelihood on `windows` (n, seq_len) when the blocks `gone` and one of the
    `candidates` are left out, by candidate. `progress` is told of each evaluation."""
    losses = {}
    for block in candidates:
        subnet = cut(parent, shape, without(shape, {*gone, block}))
        losses[block] = evaluate(subnet, windows, batch_size=batch_size).nll
        progress(1)
    return losses


def without(shape: Shape, blocks: Collection[int]) -> Architecture:
    """The parent's architecture without some blocks."""
    return Architecture(shape.hidden, tuple(b for b in shape.parent.blocks if b.source not in blocks))
