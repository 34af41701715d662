"""Taylor criteria: what the loss would lose with a unit, from gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nas.evidence import Evidence
from nas.families import layers_of
from nas.gradients import lines
from nas.importance.criterion import Score
from nas.importance.scores import UnitScores, of_lines

LINES: dict[str, Callable[[str, Tensor, Tensor, Tensor], Tensor]] = {
    "vector": lambda name, w, g, fisher: lines(name, g * w).abs(),
    "element1": lambda name, w, g, fisher: lines(name, (g * w).abs()),
    "element2": lambda name, w, g, fisher: lines(name, (w * w * fisher).abs()),
    "mix": lambda name, w, g, fisher: lines(name, (g * w - 0.5 * w * w * fisher).abs()),
}
"""Scores of a projection's lines from its name, weights w, gradients g and Fisher diagonal: `vector` is the
absolute value of the signed sum over a line (coarse), the others sum absolute values of single weights."""


def taylor(form: str) -> Score:
    """LLM-Pruner (arXiv 2305.11627, eq. 3 to 5) in one of the forms of `LINES`, summed over coupled lines."""

    def scored(evidence: Evidence, block: int) -> UnitScores:
        gradients = evidence.gradients[block]
        weights = layers_of(evidence.parent)[block].projections()
        return of_lines(
            evidence.shape,
            {
                name: LINES[form](
                    name, linear.weight.detach().float(), gradients.mean[name], gradients.square[name]
                )
                for name, linear in weights
            },
        )

    return scored
