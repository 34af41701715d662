"""No importance at all: a random order, the line that every criterion has to beat."""

import torch

from nas.evidence import Evidence
from nas.importance.scores import UnitScores


def chance(evidence: Evidence, block: int) -> UnitScores:
    """Uniform draws, the same for the same shape, seed and block."""
    draw = torch.Generator().manual_seed(hash((evidence.seed, block)) % 2**63)
    shape, device = evidence.shape, evidence.parent.device

    def scores(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=draw, dtype=torch.float64).to(device)

    return UnitScores(
        scores(shape.kv_groups), scores(shape.kv_groups, shape.queries_per_group), scores(shape.ffn)
    )
