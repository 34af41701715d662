"""Any regressor of scikit-learn's kind as a predictor that keeps the promises of `predictors.contract`.

Kernels and penalties are made for columns and scores of unit size; some regressors answer before `fit`, some
draw global random numbers. `Standardised` sees to that, and what is learned is the regressor's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.lazy import build
from predictors.protocol import Features, Scores
from predictors.ridge import standardiser

BATCH = 8192  # rows predicted at a time: kernels of them with 1000 known rows fill 64 MB


class Standardised(RegressorMixin, BaseEstimator):
    """The regressor that `make` makes, between columns and scores of mean 0 and deviation 1.

    `make` is a class or a function. At every fit it is called with those of these keywords that it names:
    `seed` or `random_state`, `n_jobs` (1: on small tables more threads cost more than they save), and the
    numbers of `rows` and `columns` that it will learn from, so that settings can follow them. A column that
    never varies is 0 to it in every row. After `fit`: `model_`, the regressor, fitted; None where all scores
    were equal.
    """

    def __init__(self, make: Callable[..., Any], *, seed: int = 0) -> None:
        self.make = make
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self.mean_, self.scale_ = standardiser(X)
        self.centre_ = float(y.mean())
        self.unit_ = float(y.std())
        self.model_ = None
        if self.unit_ > 1e-12 * np.abs(y).max():
            rows, columns = X.shape
            model = build(
                self.make, seed=self.seed, random_state=self.seed, n_jobs=1, rows=rows, columns=columns
            )
            with _own_random_numbers(self.seed), warnings.catch_warnings():
                # A hyper-parameter at the end of its range is an answer too.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model_ = model.fit((X - self.mean_) / self.scale_, (y - self.centre_) / self.unit_)
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        Z = self._standardised(X)
        if self.model_ is None:
            return np.full(len(Z), self.centre_)
        told = [self.model_.predict(Z[i : i + BATCH]) for i in range(0, len(Z), BATCH)]
        scores: Scores = self.centre_ + self.unit_ * np.concatenate(told).astype(np.float64)
        return scores

    def _standardised(self, X: Features) -> Features:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        Z: Features = (X - self.mean_) / self.scale_
        return Z


class StandardisedWithStd(Standardised):
    """The same of a regressor whose `predict` takes `return_std`, as Gaussian processes do."""

    def predict_with_std(self, X: Features) -> tuple[Scores, Scores]:
        """`predict(X)` (m,) and the standard deviation (m,) of a measured score about it, in units of y."""
        Z = self._standardised(X)
        if self.model_ is None:
            return np.full(len(Z), self.centre_), np.zeros(len(Z))
        told = [self.model_.predict(Z[i : i + BATCH], return_std=True) for i in range(0, len(Z), BATCH)]
        p, std = (np.concatenate(parts) for parts in zip(*told, strict=True))
        return self.centre_ + self.unit_ * p, self.unit_ * std


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """NumPy's global random numbers start from `seed` inside and go on outside as if nothing had been drawn.

    For regressors that draw them and have no argument to say otherwise, such as scikit-learn's SVR.
    """
    saved = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(saved)
