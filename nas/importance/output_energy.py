"""Output energy: second moment of a unit's input times its output weights."""

from torch import Tensor


def output_energy(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """The sum of ||W_:j||^2 E[x_j^2] over a unit's columns.

    What the unit adds to the module's output if columns were uncorrelated (Greedy Output Approximation,
    arXiv 2407.19126, the depth-2 second moment in its exact form).
    """
    return (weight.double().square().sum(0) * gram.diagonal()).view(-1, unit).sum(1)
