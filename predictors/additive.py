"""A sum of one function a column, fitted jointly: the surrogate of one-block-replacement scores.

Where every row of a table differs from one reference in a single column, what it learns are the single
scores, and what it predicts for several changes at once is their sum (Bercovich et al. 2024, Puzzle, scores
each block's variants so). From tables of another kind it learns the sum that fits best: a generalised
additive model in penalised linear splines (Eilers and Marx 1996; Wood, Generalized Additive Models, 4).
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.protocol import Features, Scores
from predictors.ridge import PENALTIES, Line, ridge, standardiser

BENDS = (0.03, 0.3, 3.0, 30.0, 1000.0)
EXACT = 1e-9  # the penalty per row where no row may be missed


class Curve(NamedTuple):
    """A piecewise linear function of one column: straight between knots and on beyond the outer ones."""

    column: int
    knots: Scores  # (k,), ascending, k >= 2
    heights: Scores  # (k,): the score at each knot less the mean score

    def __call__(self, x: Scores) -> Scores:
        first, last = np.diff(self.heights)[[0, -1]] / np.diff(self.knots)[[0, -1]]
        below, above = np.minimum(x - self.knots[0], 0.0), np.maximum(x - self.knots[-1], 0.0)
        value: Scores = np.interp(x, self.knots, self.heights) + first * below + last * above
        return value


class Additive(RegressorMixin, BaseEstimator):
    """mean + f_1(x_1) + f_2(x_2) + ..., each f piecewise linear over its column's learned values.

    A column of at most `knots` values has a knot at each, another one at as many quantiles; `columns`
    restricts which are used at all, for some may be functions of others. Penalised are the squared slopes,
    averaged over a column's range, and `bend` times the squared changes of slope from piece to piece, both
    per standard deviation of the column: with an endless bend this is `StandardisedRidge`. Penalty and bend,
    one of `bends`, are chosen by leave-one-out, but for one-block-replacement tables: there a row is the only
    one to tell of its value, to leave it out would teach nothing, so all values are knots and all rows are
    reproduced. After `fit`: `curves_`, `penalty_`, `bend_`.
    """

    def __init__(
        self,
        *,
        columns: tuple[int, ...] | None = None,
        knots: int = 9,
        penalties: tuple[float, ...] = PENALTIES,
        bends: tuple[float, ...] = BENDS,
    ) -> None:
        self.columns = columns
        self.knots = knots
        self.penalties = penalties
        self.bends = bends

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        if self.knots < 2 or not self.bends or min(self.bends) < 0:
            raise ValueError(
                "knots must be at least 2, bends at least one and not negative, "
                f"got {self.knots} and {self.bends}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        used = self._used(X)
        self.mean_ = float(y.mean())
        t = y - self.mean_
        scale = standardiser(X)[1]
        single = one_at_a_time(X[:, used])
        most = len(X) if single else self.knots
        knots = {j: _knots(X[:, j], most) for j in used if np.isfinite(scale[j])}
        penalties, bends = ((EXACT,), (0.0,)) if single else (self.penalties, self.bends)
        best: tuple[float, float, Line, list[Features]] | None = None
        for bend in bends:
            bases = [_basis(at, scale[j], bend) for j, at in knots.items()]
            pieces = [
                _pieces(X[:, j], at) @ basis for (j, at), basis in zip(knots.items(), bases, strict=True)
            ]
            Z = np.hstack([*pieces, np.zeros((len(t), 1))])  # never empty
            line = ridge(Z - Z.mean(axis=0), t, penalties)
            error = float(np.mean((line.left_out - t) ** 2))
            if best is None or error < best[0]:
                best = (error, bend, line, bases)
        assert best is not None
        _, self.bend_, line, bases = best
        self.penalty_ = line.penalty

        self.curves_ = []
        start = 0
        for (j, at), basis in zip(knots.items(), bases, strict=True):
            slopes = basis @ line.weights[start : start + basis.shape[1]]
            start += basis.shape[1]
            heights = np.concatenate([[0.0], np.cumsum(slopes * np.diff(at))])
            self.curves_.append(Curve(j, at, heights - np.interp(X[:, j], at, heights).mean()))
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Scores = np.full(len(X), self.mean_)
        for curve in self.curves_:
            scores += curve(X[:, curve.column])
        return scores

    def _used(self, X: Features) -> list[int]:
        width = X.shape[1]
        used = list(range(width)) if self.columns is None else list(self.columns)
        if not used or len(set(used)) < len(used) or min(used) < 0 or max(used) >= width:
            raise ValueError(f"columns must be different and from 0 to {width - 1}, got {self.columns}")
        return used


def one_at_a_time(X: Features) -> bool:
    """Whether each row of X (n, d) is one reference row but for a single column, not the same in all rows.

    The reference holds the most frequent value of each column.
    """
    values, counts = zip(*(np.unique(column, return_counts=True) for column in X.T), strict=True)
    reference = [value[count.argmax()] for value, count in zip(values, counts, strict=True)]
    changed = np.not_equal(X, reference)
    return bool((changed.sum(axis=1) <= 1).all() and changed.any(axis=0).sum() >= 2)


def _knots(x: Scores, most: int) -> Scores:
    """The values of a column, or as many of its quantiles: (k,), 2 <= k <= most, ascending."""
    values = np.unique(x)
    if len(values) > most:
        values = np.unique(np.quantile(x, np.linspace(0, 1, most)))
    # Values apart by rounding alone are one: a piece between them would have any slope.
    return values[np.diff(values, prepend=-np.inf) > 1e-9 * np.ptp(values)]


def _pieces(x: Scores, knots: Scores) -> Features:
    """How far x (n,) reaches into each piece between knots, (n, k - 1), in units of the column."""
    reach: Features = np.clip(x[:, None], knots[:-1], knots[1:]) - knots[:-1]
    return reach


def _basis(knots: Scores, scale: float, bend: float) -> NDArray[np.float64]:
    """(k - 1, k - 1): slopes of the pieces = basis @ weights, with weights penalised alike.

    The penalty on the slopes s is s'Ps with P = scale^2 (diag(piece / range) + bend D'D), D their
    differences. With P = LL', weights w = L's have the penalty w'w, and slopes are L'^-1 w: a ridge.
    """
    length = np.diff(knots)
    change = np.diff(np.eye(len(length)), axis=0)  # (k - 2, k - 1)
    P = np.diag(length / length.sum()) + bend * change.T @ change
    basis: NDArray[np.float64] = np.linalg.inv(scale * np.linalg.cholesky(P)).T
    return basis
