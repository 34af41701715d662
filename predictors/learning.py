"""Learning curves: what predictors are worth after so many pairs, on rows that they have not seen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.metrics import in_band, kendall_tau, kendall_tau_in_band, precision_at_k, regret
from predictors.protocol import Features, Make, Scores

BATCH = 1000
"""Rows in one call where predictions are timed: about what a search asks for at a time."""


@dataclass(frozen=True)
class Judged:
    """One fit of one predictor. Scores are on fresh rows; means over the bands where there are several.

    `kendall_tau` is over all fresh rows, `kendall_tau_in_band` and `precision_at_k` among those of about the
    band's cost, `kendall_tau_mutated` among the rows near the optimum (nan without such). `regret` is what a
    search that trusts the predictor loses: of all fresh rows of a band and all rows near its optimum, the
    best score of all minus the best among the k predicted best, in units of the score. Bands of fewer than
    2 k rows have neither `precision_at_k` nor `regret`: anybody finds the best there. `fit_seconds` and
    `predict_seconds` are of the wall clock, the latter for `queries` rows in batches of 1000.
    """

    pairs: int
    seed: int
    kendall_tau: float
    kendall_tau_in_band: float
    kendall_tau_mutated: float
    precision_at_k: float
    regret: float
    k: int
    rows_in_band: int
    fit_seconds: float
    predict_seconds: float
    queries: int


@dataclass(frozen=True)
class Rows:
    """A table: features (n, d), scores (n,), costs (n,) in the unit that bands are given in."""

    X: Features
    y: Scores
    cost: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        return Rows(self.X[chosen], self.y[chosen], self.cost[chosen])

    def __len__(self) -> int:
        return len(self.y)


def dealt(rows: Rows, seed: int, fresh: float = 0.4) -> tuple[Rows, Rows]:
    """The rows to learn from, in the order they are taken, and a share of fresh ones."""
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    count = round(fresh * len(rows))
    return rows[order[count:]], rows[order[:count]]


def learning_curve(
    make: Make,
    rows: Rows,
    sizes: Sequence[int],
    seed: int,
    *,
    centres: Sequence[float],
    width: float = 0.05,
    fresh: float = 0.4,
    mutated: Rows | None = None,
    k: int = 10,
    queries: int = 10_000,
) -> Iterator[Judged]:
    """A fresh predictor after the first of `sizes` rows, the next, …, each judged on the same fresh rows.

    A share `fresh` of the rows is held back to judge on; the rows of a smaller table are among those of a
    larger one. A band is `width * centre` around each of
    the `centres`. ValueError where a size is below 2 or above what there is to learn from.
    """
    known, unseen = dealt(rows, seed, fresh)
    if min(sizes) < 2 or max(sizes) > len(known):
        raise ValueError(f"sizes must be between 2 and {len(known)} pairs, got {min(sizes)} to {max(sizes)}")
    asked = np.resize(np.arange(len(unseen)), queries)
    for size in sizes:
        start = time.perf_counter()
        predictor = make().fit(known.X[:size], known.y[:size])
        fitted = time.perf_counter()
        for first in range(0, queries, BATCH):
            predictor.predict(unseen.X[asked[first : first + BATCH]])
        done = time.perf_counter()
        guess = predictor.predict(unseen.X)
        near = None if mutated is None else predictor.predict(mutated.X)
        bands = [in_band(unseen.cost, centre, width) for centre in centres]
        yield Judged(
            pairs=size,
            seed=seed,
            kendall_tau=kendall_tau(unseen.y, guess),
            kendall_tau_in_band=_mean(
                kendall_tau_in_band(unseen.y, guess, unseen.cost, centre, width) for centre in centres
            ),
            kendall_tau_mutated=float("nan")
            if near is None or mutated is None
            else _mean(kendall_tau_in_band(mutated.y, near, mutated.cost, c, width) for c in centres),
            precision_at_k=_mean(
                precision_at_k(unseen.y[band], guess[band], k) for band in bands if band.sum() >= 2 * k
            ),
            regret=_mean(
                _search_regret(unseen, guess, mutated, near, centre, width, k) for centre in centres
            ),
            k=k,
            rows_in_band=int(sum(band.sum() for band in bands)),
            fit_seconds=fitted - start,
            predict_seconds=done - fitted,
            queries=queries,
        )


def _search_regret(
    fresh: Rows, guess: Scores, mutated: Rows | None, near: Scores | None, centre: float, width: float, k: int
) -> float:
    """Of all rows in a band, those near the optimum among them."""
    band = in_band(fresh.cost, centre, width)
    y, p = fresh.y[band], guess[band]
    if mutated is not None and near is not None:
        band = in_band(mutated.cost, centre, width)
        y, p = np.concatenate([y, mutated.y[band]]), np.concatenate([p, near[band]])
    return regret(y, p, k) if len(y) >= 2 * k else float("nan")


def _mean(values: Iterator[float]) -> float:
    """Of the values that there are; nan of none."""
    found = [value for value in values if not np.isnan(value)]
    return float(np.mean(found)) if found else float("nan")
