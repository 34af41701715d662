"""Wanda for structures: weight magnitude times the norm of the input it meets."""

from torch import Tensor


def wanda(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """The sum over a unit's columns of the mean over outputs of |W_ij| sqrt(E[x_j^2]).

    Wanda (arXiv 2306.11695, eq. 1) gathered over columns as the Wanda-sp of FLAP (arXiv 2312.11983) does.
    """
    return (weight.double().abs().mean(0) * gram.diagonal().sqrt()).view(-1, unit).sum(1)
