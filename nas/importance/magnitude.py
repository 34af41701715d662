"""Weight magnitude, blind to the data: of a unit's output weights alone, or of all its coupled weights."""

from torch import Tensor

from nas.evidence import Evidence
from nas.families import layers_of
from nas.gradients import lines
from nas.importance.criterion import Score
from nas.importance.scores import UnitScores, of_lines


def magnitude(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """The sum of ||W_:j||^2 over a unit's columns of the output matrix (Magnitude-sp in FLAP's comparison,
    arXiv 2312.11983)."""
    return weight.double().square().sum(0).view(-1, unit).sum(1)


def norm(degree: int) -> Score:
    """The sum of |w|^degree over all coupled weights of a unit (LLM-Pruner's L1 and L2)."""

    def scored(evidence: Evidence, block: int) -> UnitScores:
        weights = layers_of(evidence.parent)[block].projections()
        return of_lines(
            evidence.shape,
            {name: lines(name, linear.weight.detach().double().abs() ** degree) for name, linear in weights},
        )

    return scored
