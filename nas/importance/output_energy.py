"""Output energy: second moment of a unit's input times its output weights."""

from torch import Tensor


def output_energy(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """Units by the sum of ||W_:j||^2 E[x_j^2] over their columns, largest first.

    What the unit adds to the module's output if columns were uncorrelated (Greedy Output Approximation,
    arXiv 2407.19126, the depth-2 second moment in its exact form).
    """
    energy = weight.double().square().sum(0) * gram.diagonal()
    return energy.view(-1, unit).sum(1).argsort(descending=True, stable=True)
