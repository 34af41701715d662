"""Ways to find the best subnet within a budget by predictions alone, compared at equal time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from nas.cost import Budget
from nas.damage import DamagePredictor
from nas.generations import Found
from nas.knapsack import line_damage, optimum
from nas.pair_table import PairTable
from nas.proposals import Indices
from nas.replacement import ModuleDamage
from nas.search import SEARCHERS, Predict, search
from nas.what_if import known_starts


@dataclass(frozen=True)
class Problem:
    """A table with its fitted predictor; `singles` is the damage of measured single replacements, if any."""

    table: PairTable
    fitted: DamagePredictor
    singles: ModuleDamage | None

    @property
    def predict(self) -> Predict:
        """Widths to scores."""
        return lambda rows: self.fitted.predict(self.table.encoding(rows))


Strategy = Callable[[Problem, Budget, float, int], Found]
"""(problem, budget, seconds, seed) -> what was scored, best first, within the budget."""

FOREVER, CLIMBS = 10**9, 2
SINGLES = "exact, one-block replacement"
NOTHING = np.zeros((0, 0), dtype=np.int64)


def sampled(searcher: str, climbs: int, exact: bool = False) -> Strategy:
    """Optuna's sampler of this name, alone or with climbs; with `exact` the additive optimum among the
    starts."""

    def run(problem: Problem, budget: Budget, seconds: float, seed: int) -> Found:
        begins = perf_counter()
        first = known_starts(problem.table, budget, np.random.default_rng([seed, 1]))
        if exact:
            first = np.concatenate(
                [exactly(problem, budget, line_damage(problem.fitted, problem.table.hints), seconds), first]
            )
        left = max(0.0, seconds - (perf_counter() - begins))
        return search(
            problem.table.space, budget, problem.predict, starts=first, seed=seed, trials=FOREVER,
            searcher=searcher, climbs=climbs, seconds=left,
        )  # fmt: skip

    return run


def solved(singles: bool) -> Strategy:
    """The exact optimum of an additive model, of the line or of measured single replacements."""

    def run(problem: Problem, budget: Budget, seconds: float, seed: int) -> Found:
        damage = problem.singles if singles else line_damage(problem.fitted, problem.table.hints)
        rows = exactly(problem, budget, damage, seconds) if damage is not None else NOTHING
        predicted = problem.predict(problem.table.space.widths(rows)) if len(rows) else np.zeros(0)
        return Found(rows, predicted, len(rows), tuple(predicted.tolist()))

    return run


def exactly(problem: Problem, budget: Budget, damage: ModuleDamage, seconds: float) -> Indices:
    """The optimum of the additive model, (1, knobs), or no row where it is not known in time."""
    found = optimum(problem.table.space, budget, damage, seconds=max(seconds, 1e-3))
    return np.zeros((0, len(problem.table.space.depths)), dtype=np.int64) if found is None else found


STRATEGIES: dict[str, Strategy] = {
    **{f"{name}, climbs": sampled(name, CLIMBS) for name in SEARCHERS},
    **{f"{name} alone": sampled(name, 0) for name in SEARCHERS},
    "nsga2, climbs, exact start": sampled("nsga2", CLIMBS, exact=True),
    "exact, additive line": solved(singles=False),
    SINGLES: solved(singles=True),
}
"""By name; the first is what the main job does."""
