"""Refine the search under front-to-back repair: a second, short exploration that starts from the first.

One-pass scores are cheap and order subnets well from afar, but front-to-back repair makes up for some cuts
more than for others, and among the best they tell little. Here few subnets are measured as they would be
shipped, on fewer calibration windows, and a second predictor learns how their damage differs from what the
first one expects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.building import Measure, table
from nas.cost import Budget, CostModel
from nas.encoding import Encoding
from nas.exploration import Explored, explore
from nas.pairs import Pairs
from nas.proposals import apart
from nas.search import Predict
from nas.shape import Widths
from nas.space import SearchSpace
from predictors.protocol import Predictor


@dataclass(frozen=True)
class WithExpected:
    """An encoding with one more column: the damage that a first predictor expects, reference - score.

    The second predictor's additive line rests on it alone, so that from few pairs it is the first predictor
    times a factor, and learns from the other columns where that is wrong.
    """

    base: Encoding
    expect: Predict
    reference: float

    @property
    def cost(self) -> CostModel:
        """The base's."""
        return self.base.cost

    @property
    def errors(self) -> tuple[int, ...]:
        """The number of the last column."""
        return (len(self.base.columns),)

    def __call__(self, widths: Widths) -> NDArray[np.float64]:
        """(n, blocks, 3) widths -> (n, columns + 1) features."""
        expected = self.reference - self.expect(widths)
        return np.concatenate([self.base(widths), expected[:, None]], axis=1)


def refine(
    space: SearchSpace,
    budget: Budget,
    encoding: Encoding,
    make: Callable[[], Predictor],
    measure: Measure,
    pairs: Pairs,
    explored: Explored,
    *,
    reference: float,
    total: int,
    rounds: int,
    trials: int,
    seed: int,
    searcher: str = "nsga2",
    quiet: bool = False,
) -> Explored:
    """`explore` with the scores of `measure`, `total` of them over `rounds`, stored in `pairs`.

    The first third goes to the best of what was `explored` that differ from each other in a quarter of all
    knobs.
    """
    best = sorted(explored.pairs, key=lambda pair: -pair.score)
    rows = space.indices(table(best, space.shape)[0])
    first = rows[apart(rows, max(2, total // 3), distance=rows.shape[1] // 4)]
    return explore(
        space,
        budget,
        WithExpected(encoding, explored.predict, reference),
        make,
        measure,
        pairs,
        first,
        reference=reference,
        total=total,
        rounds=rounds,
        trials=trials,
        seed=seed,
        searcher=searcher,
        origin="refinement, ",
        quiet=quiet,
    )
