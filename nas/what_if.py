"""What other budgets would give, by predictions on the pairs that there are; nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.cost import Budget
from nas.pair_table import PairTable
from nas.proposals import Indices, fit, smallest
from nas.sampling import starts
from nas.search import Predict, search
from nas.shape import Widths


@dataclass(frozen=True, eq=False)  # an array inside
class Within:
    """The best predicted subnet within a limit: widths (blocks, 3) and its predicted score; `among_pairs`
    says whether pairs of its size were measured."""

    limit: float
    widths: Widths
    predicted: float
    among_pairs: bool


def what_if(
    table: PairTable,
    predict: Predict,
    name: str,
    limits: Sequence[float],
    *,
    seed: int,
    trials: int = 120,
) -> list[Within]:
    """The best predicted subnet within each of these limits on one cost, searched for one by one; limits
    that no subnet keeps are passed over."""
    found = []
    for number, limit in enumerate(limits):
        budget = Budget(table.cost, {name: limit})
        if not budget.allows(table.space.widths(smallest(table.space))).all():
            continue
        rng = np.random.default_rng([seed, number])
        best = search(
            table.space, budget, predict, starts=known_starts(table, budget, rng),
            seed=int(rng.integers(2**31)), trials=trials,
        )  # fmt: skip
        widths = table.space.widths(best.indices[:1])[0]
        found.append(Within(limit, widths, float(best.predicted[0]), table.among_pairs(widths)))
    return found


def known_starts(table: PairTable, budget: Budget, rng: np.random.Generator, count: int = 30) -> Indices:
    """Structured architectures and the best pairs, all fitted to the budget: (n, knobs)."""
    best = table.space.indices(table.widths[np.argsort(-table.scores, kind="stable")[:count]])
    structured = starts(table.space, budget, rng, table.hints)
    return np.concatenate([structured, fit(table.space, budget, best, rng)])
