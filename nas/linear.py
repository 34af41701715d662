"""The linear algebra of least-squares repair on Gram matrices, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 1e-3
"""Damping relative to the mean of the Gram matrix's diagonal."""


def damped(gram: Tensor, relative: float = DAMPING) -> Tensor:
    """gram + lambda I with lambda relative to the mean diagonal, in float64; (n, n).

    A Gram matrix of zeros (a dead module) gets lambda = `relative`, so that it can be inverted as well.
    """
    new = gram.clone() if gram.dtype == torch.float64 else gram.double()
    new.diagonal().add_(strength(gram, relative))
    return new


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


def prefix_solution(weight: Tensor, gram: Tensor, kept: Tensor, relative: float = DAMPING) -> Tensor:
    """W S[:, K] S[K, K]^-1 for any kept columns K, (m, kept): `weight` (m, n), `gram` (n, n), S damped."""
    full = damped(gram, relative)
    solution: Tensor = torch.linalg.solve(full[kept][:, kept], (weight.double() @ full[:, kept]).T).T
    return solution


def admm(
    weight: Tensor,
    gram: Tensor,
    kept: Tensor,
    relative: float = DAMPING,
    *,
    steps: int = 30,
    rho: float = 1.0,
) -> Tensor:
    """The same least-squares problem by ADMM, (m, kept): argmin over W' that is zero outside `kept` of
    tr((W' - W) S (W' - W)^T), after so many steps (arXiv 2409.17372, eq. 9 to 11).

    W' <- (W S + rho (Z - U)) (S + rho I)^-1, Z <- W' + U on the kept columns and 0 elsewhere,
    U <- U + W' - Z, from W' = Z = W and U = 0. Converges to `prefix_solution` for every `rho` > 0.
    """
    full = damped(gram, relative)
    eye = torch.eye(len(full), dtype=full.dtype, device=full.device)
    inverse = torch.linalg.inv(full + rho * eye)
    target = weight.double() @ full
    z, u = weight.double(), torch.zeros_like(target)
    for _ in range(steps):
        moved = (target + rho * (z - u)) @ inverse
        z = torch.zeros_like(z)
        z[:, kept] = (moved + u)[:, kept]
        u = u + moved - z
    return z[:, kept]


def ridge(gram: Tensor, cross: Tensor, towards: Tensor, relative: float) -> Tensor:
    """argmin_W of E||W x - y||^2 + lambda ||W - towards||^2, (m, n).

    `gram` is E[x x^T] (n, n), `cross` E[y x^T] (m, n), lambda = `relative` times the mean diagonal of `gram`.
    """
    pull = strength(gram, relative) * towards.double()
    solution: Tensor = torch.linalg.solve(damped(gram, relative), (cross.double() + pull).T).T
    return solution


def factorise(
    grams: Tensor, crosses: Tensor, out: Tensor, value: Tensor, *, sweeps: int = 4, steps: int = 6
) -> tuple[Tensor, Tensor]:
    """argmin over O_q and V of E||y - sum_q O_q V z_q||^2 by alternating least squares, from a given start.

    `grams` (Q, Q, n, n) holds E[z_p z_q^T], `crosses` (Q, m, n) E[y z_q^T]; `out` (Q, m, D) and `value`
    (D, n) are the start. O is solved exactly; V by conjugate gradients on its normal equations
    sum_pq O_p^T O_q V E[z_q z_p^T] = sum_p O_p^T E[y z_p^T], preconditioned by the averages over queries.
    No step raises the error. Returns (O, V), scaled so that V keeps its norm.
    """
    queries, dim, width = out.shape[0], out.shape[2], value.shape[1]
    norm = value.norm()
    mean_gram = torch.linalg.cholesky(damped(grams.diagonal(dim1=0, dim2=1).mean(-1), 1e-9))
    # E[z_q z_p^T] for all p side by side, (n, p * n): no copies where `grams` are parts of one matrix.
    side_by_side = [grams[q].transpose(0, 1).reshape(width, -1) for q in range(queries)]

    def seen_by(v: Tensor) -> Tensor:
        """V E[z_q z_p^T] for all pairs of queries, (D, p, q, n)."""
        return torch.stack([(v @ rows).view(dim, queries, width) for rows in side_by_side], 2)

    for _ in range(sweeps):
        metric = torch.einsum("pmi,qmj->pqij", out, out)  # (Q, Q, D, D)
        scale = torch.linalg.cholesky(damped(metric.diagonal(dim1=0, dim2=1).sum(-1), 1e-9))
        flat_metric = metric.permute(2, 3, 0, 1).reshape(dim, -1)  # (D, D * p * q)

        def normal(v: Tensor, flat_metric: Tensor = flat_metric) -> Tensor:
            return flat_metric @ seen_by(v).reshape(-1, width)

        def precondition(v: Tensor, scale: Tensor = scale) -> Tensor:
            return torch.cholesky_solve(torch.cholesky_solve(v, scale).T, mean_gram).T

        wanted = torch.einsum("pmi,pmn->in", out, crosses)
        value = conjugate_gradients(normal, precondition, wanted, value, steps=1 if queries == 1 else steps)
        inner = (seen_by(value) @ value.T).permute(2, 0, 1, 3).reshape(queries * dim, queries * dim)
        seen = torch.einsum("pmn,in->mpi", crosses, value).reshape(-1, queries * dim)
        solved = torch.linalg.solve(damped(inner, 1e-9), seen.T).T
        out = solved.view(-1, queries, dim).transpose(0, 1)
    ratio = norm / value.norm() if norm > 0 and value.norm() > 0 else 1.0
    return out / ratio, value * ratio


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor | None = None,
    *,
    steps: int,
) -> Tensor:
    """Preconditioned conjugate gradients for operator(v) = wanted, symmetric and positive; from zeros unless
    a `start` is given."""
    v = torch.zeros_like(wanted) if start is None else start
    rest = wanted if start is None else wanted - operator(start)
    z = precondition(rest)
    direction, power = z, (rest * z).sum()
    for _ in range(steps):
        if float(power) <= 1e-24 * float((wanted * wanted).sum()):
            break
        image = operator(direction)
        step = power / (direction * image).sum()
        v, rest = v + step * direction, rest - step * image
        z = precondition(rest)
        before, power = power, (rest * z).sum()
        direction = z + (power / before) * direction
    return v
