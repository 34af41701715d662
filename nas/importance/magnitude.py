"""Weight magnitude: the squared norm of a unit's output weights, blind to the data."""

from torch import Tensor


def magnitude(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """Units by the sum of ||W_:j||^2 over their columns, largest first."""
    energy = weight.double().square().sum(0).view(-1, unit).sum(1)
    return energy.argsort(descending=True, stable=True)
