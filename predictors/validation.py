"""What a predictor is worth on rows it has not seen, told in the numbers that a search depends on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictors.metrics import in_band, kendall_tau, kendall_tau_in_band, precision_at_k, r2, regret, widened
from predictors.protocol import Make


def out_of_fold(
    make: Make, X: ArrayLike, y: ArrayLike, folds: int = 5, repeats: int = 1, seed: int = 0
) -> NDArray[np.float64]:
    """Predictions (repeats, n) for X (n, d), each by a fresh predictor that has not seen the row's fold.

    The rows are dealt to the folds anew in every repeat. ValueError unless 2 <= folds <= n and every
    predictor has two rows to learn from.
    """
    X, y = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    rows = len(y)
    if len(X) != rows:
        raise ValueError(f"{len(X)} rows of features for {rows} scores")
    if not 2 <= folds <= rows or rows < 3 or repeats < 1:
        raise ValueError(
            f"there must be at least 3 pairs, 1 repeat and between 2 and as many folds as pairs; "
            f"got {folds} folds, {rows} pairs, {repeats} repeats"
        )
    rng = np.random.default_rng(seed)
    predicted = np.empty((repeats, rows))
    for repeat in range(repeats):
        fold = rng.permutation(rows) % folds
        for f in range(folds):
            held = fold == f
            predicted[repeat, held] = make().fit(X[~held], y[~held]).predict(X[held])
    return predicted


def verdict(
    y: ArrayLike,
    held_out: ArrayLike,
    cost: ArrayLike,
    budget: float,
    *,
    k: int | None = None,
    band: float = 0.05,
    rows_in_band: int = 20,
) -> dict[str, float]:
    """How well held-out predictions (repeats, n), as of `out_of_fold`, order the scores y (n,) of rows with
    these costs (n,), from 10 pairs up.

    Each number is computed on all predictions of one repeat and averaged over the repeats:

    - `kendall_tau` and `r2` over all pairs
    - `kendall_tau_in_band`, `precision_at_k` and `regret` among the pairs that cost about the budget, because
      over all costs the largest always win; `regret` is in units of y, and of it alone less is better
    - `band`, the width used: within `band * budget` of the budget; the width asked for, or the least that
      holds `rows_in_band` pairs (all of them, when there are fewer)
    - `rows_in_band`, the pairs therein; `k`, a fifth of them unless given; `repeats` and `pairs`

    Taus and r2 of a constant y are nan. ValueError when there are fewer than 10 pairs, the budget is not
    positive, or lengths differ.
    """
    y, cost = np.asarray(y, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    rounds = np.atleast_2d(np.asarray(held_out, dtype=np.float64))
    if len(y) < 10 or cost.shape != y.shape or rounds.shape[1:] != y.shape:
        raise ValueError(
            "a verdict takes at least 10 pairs with one prediction and one cost each, got "
            f"{len(y)} scores, {rounds.shape[-1]} predictions and {cost.size} costs"
        )
    width = widened(cost, budget, band, rows_in_band)
    near = in_band(cost, budget, width)
    held = int(near.sum())
    k = max(1, round(held / 5)) if k is None else min(k, held)
    every = {
        "kendall_tau": [kendall_tau(y, p) for p in rounds],
        "kendall_tau_in_band": [kendall_tau_in_band(y, p, cost, budget, width) for p in rounds],
        "precision_at_k": [precision_at_k(y[near], p[near], k) for p in rounds],
        "regret": [regret(y[near], p[near], k) for p in rounds],
        "r2": [r2(y, p) for p in rounds],
    }
    used = {"repeats": len(rounds), "pairs": len(y), "k": k, "band": width, "rows_in_band": held}
    return {name: float(np.mean(values)) for name, values in every.items()} | used
