"""Several predictors of one kind, each without a share of the rows: their mean, and a spread that is honest.

Each row is held out by exactly one model of the bag, so that the errors on held-out rows are known without
a further fit, and the spread of the models can be scaled by one number to agree with them (cross-conformal in
spirit: Vovk 2015; Barber et al. 2021, jackknife+).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.lazy import build
from predictors.protocol import Features, Scores


def deal(rows: int, models: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Which model (rows,) holds out each row: shares that differ by one row at most."""
    fold: NDArray[np.intp] = rng.permutation(rows) % models
    return fold


def widening(each: NDArray[np.float64], fold: NDArray[np.intp], y: Scores) -> float:
    """What the spread of predictions `each` (models, n) is multiplied by to be the size of held-out errors.

    `fold` (n,) names the model that has not seen the row. In root mean squares over all rows; 1 when all
    models agree on every row, for then no factor helps.
    """
    missed = y - each[fold, np.arange(len(y))]
    spread = float(np.mean(each.var(axis=0)))
    return float(np.sqrt(np.mean(missed**2) / spread)) if spread > 0 else 1.0


class Bagged(RegressorMixin, BaseEstimator):
    """The mean of `models` predictors made by `make`, model b learning from all rows but those of fold b.

    `make` is any class or function that gives a fresh predictor; where it takes a `seed` or `random_state`,
    every model gets one of its own, drawn from `seed`.
    """

    def __init__(self, make: Callable[..., Any], *, models: int = 10, seed: int = 0) -> None:
        self.make = make
        self.models = models
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths.

        Of fewer than `models` rows, each is held out alone; of two, none can be, and one model sees both.
        """
        if self.models < 2:
            raise ValueError(f"a bag takes at least 2 models, got {self.models}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        rng = np.random.default_rng(self.seed)
        models = min(self.models, len(y)) if len(y) > 2 else 1
        fold = deal(len(y), models, rng)
        self.predictors_ = []
        for b, seed in enumerate(map(int, rng.integers(2**31, size=models))):
            kept = fold != b if models > 1 else np.full(len(y), True)
            predictor = build(self.make, seed=seed, random_state=seed)
            self.predictors_.append(predictor.fit(X[kept], y[kept]))
        self.widening_ = widening(self._each(X), fold, y) if models > 1 else float("nan")
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        scores: Scores = self._each(self._checked(X)).mean(axis=0)
        return scores

    def predict_with_std(self, X: Features) -> tuple[Scores, Scores]:
        """`predict(X)` (m,) and the standard deviation (m,) of a measured score about it, in units of y.

        ValueError when it was learned from two rows, of which none could be held out.
        """
        X = self._checked(X)
        if len(self.predictors_) < 2:
            raise ValueError(
                "2 pairs make one model, which has no spread to tell uncertainty from; fit 3 or more"
            )
        each = self._each(X)
        return each.mean(axis=0), self.widening_ * each.std(axis=0)

    def _checked(self, X: Features) -> Features:
        check_is_fitted(self)
        checked: Features = validate_data(self, X, dtype=np.float64, reset=False)
        return checked

    def _each(self, X: Features) -> NDArray[np.float64]:
        """What every model says, (models, m)."""
        return np.array([predictor.predict(X) for predictor in self.predictors_])
