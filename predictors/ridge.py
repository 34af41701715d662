"""Ridge regression on standardised columns, its penalty chosen by leave-one-out: the line to beat.

A few dozen pairs of a nearly additive score are all that a line needs; a predictor that loses to this one on
held-out pairs has learned nothing that the columns do not say one by one.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.protocol import Features, Scores

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 5))  # per row: 1e-5 ... 1e2


class StandardisedRidge(RegressorMixin, BaseEstimator):
    """A line through the standardised columns, in the units of y.

    `penalties` are tried in turn and are per row: the sum of squares is penalised by `penalty * n`, so that
    one list serves every number of pairs. After `fit`: `penalty_`, `weights_` (d,) per standard deviation,
    `left_out_` (n,), what the line fitted without a row says of it.
    """

    def __init__(self, penalties: tuple[float, ...] = PENALTIES) -> None:
        self.penalties = penalties

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self.mean_, self.scale_ = standardiser(X)
        self.intercept_ = float(y.mean())
        line = ridge((X - self.mean_) / self.scale_, y - self.intercept_, self.penalties)
        self.penalty_, self.weights_ = line.penalty, line.weights
        self.left_out_ = self.intercept_ + line.left_out
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Scores = (X - self.mean_) / self.scale_ @ self.weights_ + self.intercept_
        return scores

    def contributions(self, X: Features) -> Features:
        """What each column adds to each prediction, (m, d + 1), and last what an average row is given."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        added = (X - self.mean_) / self.scale_ * self.weights_
        return np.column_stack([added, np.full(len(X), self.intercept_)])


class Line(NamedTuple):
    """What `ridge` finds: `left_out[i]` is the prediction for row i by the line fitted without row i."""

    penalty: float  # per row
    weights: Scores  # (d,), or (n,) from a kernel
    left_out: Scores  # (n,)


def standardiser(X: Features) -> tuple[Features, Features]:
    """Mean (d,) and standard deviation (d,) of the columns; infinity for a dead one, which then counts 0."""
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    dead = deviation <= 1e-12 * np.abs(X).max(axis=0)  # rounding gives a constant column a tiny deviation
    return mean, np.where(dead, np.inf, deviation)


def ridge(Z: Features, t: Scores, penalties: tuple[float, ...] = PENALTIES) -> Line:
    """The ridge line of centred t (n,) on centred columns Z (n, d) that predicts left-out rows best.

    One eigendecomposition of Z'Z, (d, d), serves all penalties. ValueError unless every penalty is positive.
    """
    values, vectors = np.linalg.eigh(Z.T @ Z)
    rotated = Z @ vectors  # (n, d), orthogonal columns
    penalty, along, left_out = _best(np.maximum(values, 0.0), rotated, t, penalties)
    return Line(penalty, vectors @ along, left_out)


def ridge_of_kernel(K: Features, t: Scores, penalties: tuple[float, ...] = PENALTIES) -> Line:
    """As `ridge`, from the centred kernel K = Z Z', (n, n): for more columns than rows.

    The line is then Z' weights, its value on a row the product of `weights` (n,) with the row's kernel values
    (Hastie, Tibshirani and Friedman, section 18.3.5). ValueError unless every penalty is positive.
    """
    values, vectors = np.linalg.eigh(K)
    values = np.maximum(values, 0.0)
    penalty, _, left_out = _best(values, vectors * np.sqrt(values), t, penalties)
    weights = np.linalg.solve(K + penalty * len(t) * np.eye(len(t)), t).astype(np.float64)
    return Line(penalty, weights, left_out)


def _best(
    values: Scores, rotated: Features, t: Scores, penalties: tuple[float, ...]
) -> tuple[float, Scores, Scores]:
    """Penalty, weights (d,) along the columns and left-out predictions (n,) of the best ridge line.

    The columns `rotated` (n, d) are orthogonal, with sums of squares `values` (d,). Leave-one-out in closed
    form: row i, left out, is missed by r_i / (1 - h_i), with r the residual of the full fit and h the
    diagonal of its hat matrix, intercept included (Allen 1974, PRESS; Hastie, Tibshirani and Friedman, The
    Elements of Statistical Learning, eq. 7.64).
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties must be positive and at least one, got {penalties}")
    rows = len(t)
    along = rotated.T @ t  # (d,)
    best: tuple[float, float, Scores] | None = None
    for penalty in penalties:
        shrunk = 1.0 / (values + penalty * rows)  # (d,)
        hat = 1.0 / rows + rotated**2 @ shrunk  # (n,), below 1 because the penalty is positive
        missed = (t - rotated @ (shrunk * along)) / np.maximum(1.0 - hat, 1e-9)
        error = float(np.mean(missed**2))
        if best is None or error < best[0]:
            best = (error, penalty, missed)
    assert best is not None
    _, penalty, missed = best
    return penalty, along / (values + penalty * rows), t - missed
