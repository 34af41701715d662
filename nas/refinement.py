"""Refine the best subnets under front-to-back repair: a small local search on its real scores.

One-pass scores are cheap and order subnets well from afar, but front-to-back repair makes up more for some
cuts than for others, and among the best they tell little. Here the few best are measured under it, on fewer
calibration windows than the final repair sees, and improved one at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nas.cost import Budget
from nas.pairs import Pair, Pairs
from nas.proposals import Indices, apart, fit, mutate
from nas.search import Predict
from nas.shape import Widths, architecture_of
from nas.space import SearchSpace

Score = Callable[[Widths], float]
"""(blocks, 3) widths -> score of that subnet after front-to-back repair."""


def refine(
    space: SearchSpace,
    budget: Budget,
    score: Score,
    predict: Predict,
    rows: Indices,
    pairs: Pairs,
    rng: np.random.Generator,
    *,
    evaluations: int,
    pool: int = 6,
    children: int = 64,
    quiet: bool = False,
) -> list[Pair]:
    """The refined pairs, best first, after `evaluations` of `score`, all stored in `pairs`.

    The first quarter goes to the given `rows` in their order, leaving out what is much like one before. Then,
    one at a time, the most promising child of the `pool` best is measured: a mutation within the budget,
    whose score is estimated as its parent's real one plus the difference that `predict` (which knows
    one-pass scores) sees between the two.
    """
    known: dict[bytes, tuple[NDArray[np.int64], Pair]] = {}
    before = {pair.architecture: pair for pair in pairs.all}

    def measure(row: NDArray[np.int64]) -> None:
        widths = space.widths(row[None])[0]
        if widths.tobytes() in known:
            return
        architecture = architecture_of(widths, space.shape)
        pair = before.get(architecture) or pairs.add(architecture, score(widths), "refinement")
        known[widths.tobytes()] = row, pair
        bar.update(1)

    with tqdm(total=evaluations, desc="refinement", unit="subnet", disable=quiet, leave=False) as bar:
        first = apart(rows, max(1, evaluations // 4), distance=rows.shape[1] // 4)
        for row in rows[first]:
            measure(row)
        for _ in range(evaluations - len(known)):
            best = sorted(known.values(), key=lambda item: -item[1].score)[:pool]
            parents = np.repeat(np.stack([row for row, _ in best]), children, axis=0)
            scores = np.repeat([pair.score for _, pair in best], children)
            young = fit(space, budget, mutate(space, parents, rng), rng)
            widths = space.widths(young)
            estimate = scores + predict(widths) - predict(space.widths(parents))
            for child in np.argsort(-estimate, kind="stable"):
                if widths[child].tobytes() not in known:
                    measure(young[child])
                    break
    return sorted((pair for _, pair in known.values()), key=lambda pair: -pair.score)
