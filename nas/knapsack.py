"""The exact optimum of an additive model under hard budgets: a multiple-choice knapsack, solved by HiGHS.

Where damage is a sum over modules (as in Puzzletron, arXiv 2411.19146, section 4), choosing one choice of
every attention and MLP is an integer program: all costs of a subnet are sums over modules too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from nas.cost import Budget
from nas.damage import DamagePredictor
from nas.proposals import Indices
from nas.replacement import ModuleDamage, replaced
from nas.sampling import Hints
from nas.space import SearchSpace

TOLERANCE = 2e-6
"""Room that is left, in parts of the parent's cost: HiGHS keeps constraints to 1e-6, and a hard budget to
nothing."""


def optimum(
    space: SearchSpace, budget: Budget, damage: ModuleDamage, *, seconds: float = 10.0
) -> Indices | None:
    """The architecture (1, knobs) of least summed damage within the budget, attention kept somewhere; None
    where nothing fits, or the time ends before it is known to be the best. Choices of unknown damage (NaN)
    are not made.
    """
    rows, module = replaced(space)
    shape = space.shape
    whole = shape.whole
    harm = damage(rows)
    known = np.isfinite(harm)
    rows, module, harm = rows[known], module[known], harm[known]
    modules = int(module.max()) + 1
    if len(np.unique(module)) < modules:
        return None
    # Every choice is exactly one column; the costs of all that are chosen, over the parent's, add up.
    parent = budget.cost.of_widths(whole, budget.limits)
    each = budget.cost.of_widths(rows, budget.limits)
    one = csr_array((np.ones(len(rows)), (module, np.arange(len(rows)))), shape=(modules, len(rows)))
    scale = {name: float(parent[name]) for name in budget.limits}
    costs = np.stack([(each[name] - scale[name]) / scale[name] for name in budget.limits])
    room = np.array([limit / scale[name] - 1.0 for name, limit in budget.limits.items()])
    groups = rows[np.arange(len(rows)), module // 2, 0]
    attends = ((groups > 0) & (module % 2 == 0)).astype(np.float64)[None]
    found = milp(
        harm,
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(costs, -np.inf, room - TOLERANCE),
            LinearConstraint(attends, 1, np.inf),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )
    if found.x is None or found.status != 0:
        return None
    chosen = np.flatnonzero(found.x > 0.5)
    widths = whole.copy()
    for column in chosen:
        block, kind = divmod(int(module[column]), 2)
        part = slice(0, 2) if kind == 0 else slice(2, 3)
        widths[block, part] = rows[column, block, part]
    indices = space.indices(widths[None])
    return indices if bool(budget.allows(space.widths(indices))[0]) else None


def line_damage(fitted: DamagePredictor, hints: Hints) -> ModuleDamage:
    """The additive line of a fitted predictor, choice by choice: what the exact optimum can be asked of."""
    blocks = len(hints.mlp_error)
    first, second = fitted.weights_[: 2 * blocks], fitted.weights_[2 * blocks :]

    def harm(errors: NDArray[np.float64], part: slice) -> NDArray[np.float64]:
        ones = (slice(None), *[None] * (errors.ndim - 1))
        result: NDArray[np.float64] = first[part][ones] * errors + second[part][ones] * errors**2
        return result

    return ModuleDamage(
        harm(hints.attention_error, slice(0, blocks)), harm(hints.mlp_error, slice(blocks, 2 * blocks))
    )
