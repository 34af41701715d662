"""The linear algebra of least-squares repair on Gram matrices, in float64."""

import torch
from torch import Tensor

DAMPING = 1e-3
"""Damping relative to the mean of the Gram matrix's diagonal."""


def damped(gram: Tensor, relative: float = DAMPING) -> Tensor:
    """gram + lambda I with lambda relative to the mean diagonal, in float64; (n, n).

    A Gram matrix of zeros (a dead module) gets lambda = `relative`, so that it can be inverted as well.
    """
    eye = torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    return gram.double() + strength(gram, relative) * eye


def strength(gram: Tensor, relative: float) -> float:
    """The ridge term: `relative` times the mean diagonal, or `relative` itself for a matrix of zeros."""
    scale = float(gram.diagonal().mean())
    return relative * (scale if scale > 0 else 1.0)


def cholesky(gram: Tensor, relative: float = DAMPING) -> Tensor:
    """Lower Cholesky factor of the damped Gram matrix; the damping grows tenfold until it exists.

    Raises `RuntimeError` if the matrix holds NaN or stays indefinite.
    """
    for attempt in range(8):
        factor, info = torch.linalg.cholesky_ex(damped(gram, relative * 10**attempt))
        if int(info) == 0 and bool(torch.isfinite(factor).all()):
            return factor
    raise RuntimeError("a Gram matrix is not positive definite even with heavy damping; does it hold NaN?")


def prefix_solutions(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Everything that is needed to repair any prefix of a module's input columns.

    For kept columns K = {0..k-1} the damped least-squares repair of `weight` (d, n) is
    W_K = W S[:, K] S[K, K]^-1 with S the damped Gram matrix (arXiv 2409.17372, the closed form of its
    reformation; the damping pulls towards W, so that keeping everything gives W). With S = L L^T this is
    (W L)[:, :k] L^-1[:k, :k], one factorisation for all prefixes.

    Returns (W L, L^-1, error) with error (n + 1,): error[k] is the mean squared output error, summed over
    outputs, that keeping k columns leaves, tail sums of the squared columns of W L.
    """
    factor = cholesky(gram)
    projected = weight.double() @ factor
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(factor.shape[0], dtype=factor.dtype, device=factor.device), upper=False
    )
    tail = projected.square().sum(0).flip(0).cumsum(0).flip(0)
    return projected, inverse, torch.cat([tail, tail.new_zeros(1)])


def ridge(gram: Tensor, cross: Tensor, towards: Tensor, relative: float) -> Tensor:
    """argmin_W of E||W x - y||^2 + lambda ||W - towards||^2, (m, n).

    `gram` is E[x x^T] (n, n), `cross` E[y x^T] (m, n), lambda = `relative` times the mean diagonal of `gram`.
    """
    pull = strength(gram, relative) * towards.double()
    solution: Tensor = torch.linalg.solve(damped(gram, relative), (cross.double() + pull).T).T
    return solution
