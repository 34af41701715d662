"""No importance at all: a random order, the line that every criterion has to beat."""

import numpy as np
import torch

from nas.evidence import Evidence
from nas.importance.scores import UnitScores


def chance(evidence: Evidence, block: int) -> UnitScores:
    """Uniform draws, the same for the same shape, seed and block."""
    seed = np.random.SeedSequence((evidence.seed, block)).generate_state(1)[0]
    draw = torch.Generator().manual_seed(int(seed))
    shape, device = evidence.shape, evidence.parent.device

    def scores(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=draw, dtype=torch.float64).to(device)

    return UnitScores(
        scores(shape.kv_groups), scores(shape.kv_groups, shape.queries_per_group), scores(shape.ffn)
    )
