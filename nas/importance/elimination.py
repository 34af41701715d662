"""Second-order backward elimination: what costs least after the best linear compensation goes first."""

import torch
from torch import Tensor

from nas.importance.scores import as_if_ranked
from nas.linear import damped


def elimination(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """Scores in the order of elimination: the output error that the module is left with once a unit and all
    that go before it are gone, compensated.

    With P the inverse of the damped Gram matrix of the units still present, removing unit u and compensating
    the others in the least-squares sense costs tr(W_u (P_uu)^-1 W_u^T) (optimal brain surgeon for a whole
    column, as in SparseGPT, arXiv 2301.00774, eq. 3, and its group form). The cheapest unit is removed, W and
    P are updated for the rest, and so on: n steps of O(n^2) for single columns.
    """
    n = weight.shape[1] // unit
    weights = weight.double().clone()  # (d, n * unit), compensated as units leave
    precision = torch.linalg.inv(damped(gram))
    alive = torch.ones(n, dtype=torch.bool, device=weight.device)
    removed: list[int] = []
    costs = []
    for _ in range(n - 1):
        if unit == 1:
            cost = weights.square().sum(0) / precision.diagonal()
        else:
            blocks = precision.view(n, unit, n, unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            columns = weights.view(-1, n, unit).permute(1, 2, 0)  # (n, unit, d)
            cost = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
        victim = int(cost.masked_fill(~alive, torch.inf).argmin())
        costs.append(cost[victim])
        rows = slice(victim * unit, (victim + 1) * unit)
        # Gaussian elimination of the victim's rows and columns, from the precision and from the weights.
        gain = torch.linalg.solve(precision[rows, rows], precision[rows])  # (unit, n * unit)
        weights -= weights[:, rows] @ gain
        precision -= precision[:, rows] @ gain
        alive[victim] = False
        removed.append(victim)
        weights[:, rows] = 0.0
        precision[rows, :] = 0.0
        precision[:, rows] = 0.0
        precision[rows, rows] = torch.eye(unit, dtype=precision.dtype, device=precision.device)
    last = int(alive.nonzero()[0])
    rows = slice(last * unit, (last + 1) * unit)
    costs.append((torch.linalg.inv(precision[rows, rows]) @ weights[:, rows].T).mul(weights[:, rows].T).sum())
    return as_if_ranked(torch.tensor([*removed, last], device=weight.device), torch.stack(costs))
