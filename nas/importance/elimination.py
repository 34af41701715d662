"""Second-order backward elimination: what costs least after the best linear compensation goes first."""

import torch
from torch import Tensor

from nas.importance.scores import as_if_ranked
from nas.linear import damped

TOGETHER = 64
"""Columns that leave before the matrices are brought up to date; until then their part is in thin factors."""


def elimination(weight: Tensor, gram: Tensor, unit: int) -> Tensor:
    """Scores in the order of elimination: the output error that the module is left with once a unit and all
    that go before it are gone, compensated.

    With P the inverse of the damped Gram matrix of the units still present, removing unit u and compensating
    the others in the least-squares sense costs tr(W_u (P_uu)^-1 W_u^T) (optimal brain surgeon for a whole
    column, as in SparseGPT, arXiv 2301.00774, eq. 3, and its group form). The cheapest unit is removed, W and
    P are updated for the rest, and so on: n steps of O(n^2).
    """
    weights, precision = weight.double().clone(), torch.linalg.inv(damped(gram))
    order, costs = _columns(weights, precision) if unit == 1 else _groups(weights, precision, unit)
    return as_if_ranked(order, costs)


def _columns(weights: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of `weights` (d, n) in the order in which they leave, (n,), and what each removal costs.

    Both matrices are read, not rewritten, in most steps: a removal changes them by a product of two vectors,
    and so many of these are added at once. Of the changed matrices a step needs the diagonal of P, the norms
    of W's columns, and one row and one column of each. After that the columns that left are dropped.
    """
    left = torch.arange(weights.shape[1], device=weights.device)
    order, costs = [], []
    while len(left):
        steps = min(TOGETHER, len(left))
        squares, diagonal = weights.square().sum(0), precision.diagonal().clone()
        gone = torch.zeros_like(left, dtype=torch.bool)
        gains = weights.new_zeros(steps, len(left))  # P_v / P_vv of every v that left
        columns = weights.new_zeros(len(weights), steps)  # W_v
        pivots = weights.new_zeros(steps)  # P_vv
        for step in range(steps):
            cost = (squares / diagonal).masked_fill(gone, torch.inf)
            victim = cost.argmin(keepdim=True)  # stays on its device: nothing waits for it
            known = gains[:step].index_select(1, victim)[:, 0]
            row = precision.index_select(0, victim)[0] - (known * pivots[:step]) @ gains[:step]
            column = weights.index_select(1, victim)[:, 0] - columns[:, :step] @ known
            pivot = row.index_select(0, victim)
            gain = row / pivot
            inner = column @ weights - (column @ columns[:, :step]) @ gains[:step]
            squares = (squares - 2 * gain * inner + gain.square() * column.square().sum()).clamp_(min=0)
            diagonal = diagonal - pivot * gain.square()
            gains[step], columns[:, step], pivots[step] = gain, column, pivot[0]
            gone[victim] = True
            order.append(left[victim])
            costs.append(cost[victim])
        kept = (~gone).nonzero()[:, 0]
        gains = gains[:, kept]
        weights = weights[:, kept] - columns @ gains
        precision = precision[kept][:, kept] - (gains.T * pivots) @ gains
        left = left[kept]
    return torch.cat(order), torch.cat(costs)


def _groups(weights: Tensor, precision: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """The same for units of `unit` columns each, of which there are few; both matrices are changed."""
    n = weights.shape[1] // unit
    gone = torch.zeros(n, dtype=torch.bool, device=weights.device)
    order: list[int] = []
    costs = []
    for _ in range(n):
        blocks = precision.view(n, unit, n, unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        columns = weights.view(-1, n, unit).permute(1, 2, 0)  # (n, unit, d)
        cost = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
        victim = int(cost.masked_fill(gone, torch.inf).argmin())
        costs.append(cost[victim])
        rows = slice(victim * unit, (victim + 1) * unit)
        # Gaussian elimination of the victim's rows and columns, from the precision and from the weights.
        gain = torch.linalg.solve(precision[rows, rows], precision[rows])  # (unit, n * unit)
        weights -= weights[:, rows] @ gain
        precision -= precision[:, rows] @ gain
        gone[victim] = True
        order.append(victim)
        weights[:, rows] = 0.0
        precision[rows, :] = 0.0
        precision[:, rows] = 0.0
        precision[rows, rows] = torch.eye(unit, dtype=precision.dtype, device=precision.device)
    return torch.tensor(order, device=weights.device), torch.stack(costs)
