"""Ridge on columns, squares and products of pairs: what two knobs do together, still in closed form.

A search that cuts two neighbouring blocks loses more than the sum of both; a line cannot say so, and trees
need many pairs to. 70 columns have 2485 squares and products, far more than there are pairs: the fit works on
the kernel of the rows instead, and what it found is folded into one (d, d) matrix, so that predicting stays
cheap.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.protocol import Features, Scores
from predictors.ridge import PENALTIES, ridge_of_kernel, standardiser

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
BATCH = 8192  # rows predicted at a time: 5 MB of 80 columns


class RidgeInteractions(RegressorMixin, BaseEstimator):
    """c + b'z + z'Mz in the standardised columns z of a row, b and M shrunk, in the units of y.

    The penalty, and how much of a prediction's variance is allowed to the products before any score is seen,
    one of `shares` of the whole, are chosen together by leave-one-out; share 0 is `StandardisedRidge`. After
    `fit`: `penalty_`, `share_`, `weights_` (d,) and `products_` (d, d), symmetric, per standard deviation,
    `left_out_` (n,), what is said of each row by the same fit without it.
    """

    def __init__(
        self, *, penalties: tuple[float, ...] = PENALTIES, shares: tuple[float, ...] = SHARES
    ) -> None:
        self.penalties = penalties
        self.shares = shares

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        if not self.shares or not all(0 <= share < 1 for share in self.shares):
            raise ValueError(
                f"shares of the products must be at least one, each from 0 to below 1, got {self.shares}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self.mean_, self.scale_ = standardiser(X)
        Z, t = (X - self.mean_) / self.scale_, y - y.mean()

        # (z.z')^2 is the kernel of all z_j^2 and sqrt(2) z_j z_k, j < k (Schoelkopf and Smola 2002, 2.1).
        plain = Z @ Z.T
        paired = centred(plain**2)
        # Brought to the trace of the plain kernel: a share is one of variance at any number of columns. Where
        # no product varies, what centring leaves is rounding, which is not to be blown up.
        vary = np.trace(paired) > 1e-9 * np.trace(plain**2)
        paired_unit = np.trace(plain) / np.trace(paired) if vary else 0.0
        best = None
        for share in self.shares:
            kernel = (1 - share) * plain + share * paired_unit * paired
            line = ridge_of_kernel(kernel, t, self.penalties)
            error = float(np.mean((line.left_out - t) ** 2))
            if best is None or error < best[0]:
                best = (error, share, line)
        assert best is not None
        _, self.share_, line = best
        self.penalty_, self.left_out_ = line.penalty, y.mean() + line.left_out
        self.weights_ = (1 - self.share_) * (line.weights @ Z)
        # Both kernels and t are centred, so the weights sum to 0 and the centring of `paired` drops out.
        self.products_ = self.share_ * paired_unit * (Z.T @ (line.weights[:, None] * Z))
        self.intercept_ = float(y.mean() - np.mean(_quadratic(Z, self.products_)))
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Scores = np.empty(len(X))
        for start in range(0, len(X), BATCH):
            Z = (X[start : start + BATCH] - self.mean_) / self.scale_
            scores[start : start + BATCH] = (
                Z @ self.weights_ + _quadratic(Z, self.products_) + self.intercept_
            )
        return scores

    def contributions(self, X: Features) -> Features:
        """What each column adds to each prediction, (m, d + 1), and last what an average row is given.

        Half of a product goes to either column: with the mean of a column for its absence these are Shapley
        values.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        Z = (X - self.mean_) / self.scale_
        return np.column_stack([Z * (self.weights_ + Z @ self.products_), np.full(len(X), self.intercept_)])


def centred(K: Features) -> Features:
    """The kernel (n, n) of the same features less their means over the rows."""
    mean = K.mean(axis=0)
    shifted: Features = K - mean - mean[:, None] + mean.mean()
    return shifted


def _quadratic(Z: Features, M: Features) -> Scores:
    """z'Mz of every row (m,)."""
    value: Scores = np.einsum("ij,ij->i", Z @ M, Z)
    return value
