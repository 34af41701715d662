"""Gradient-boosted trees for a few hundred pairs: a bag of XGBoost models on what a share of a ridge leaves.

Settings were chosen on the demo's measured pairs (`python -m benchmarks.predictors --tables demo`). Kendall's
tau among fresh pairs of about one size / among pairs mutated near the optimum, after 100 and 300 uniform
pairs, mean of 5 draws:

    default   .855/.635 .906/.654    no base    .843/.661 .888/.692    whole base  .829/.548 .892/.503
    one model .853/.623 .904/.639    half a line .852/.647 .898/.614   depth 2     .850/.639 .897/.625

A base helps where pairs are, and misleads beyond them: whoever learns from uniform pairs alone and searches
near the optimum may want `base_share` 0.2. A search learns from what it measures near the optimum as it goes.
Fit of 300 x 47: 0.3 s of one core; 100,000 predictions in batches of 1000: 0.8 s. The error made is 0.9 to
1.1 times the reported standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.bagged import deal
from predictors.interactions import RidgeInteractions
from predictors.protocol import Features, Scores
from predictors.ridge import standardiser

BINS = 64  # of a column: as good as 256 for so few rows, and twice as fast
FEWEST_COLUMNS = 8  # that a tree is shown, if there are as many: from fewer it could not learn interactions


class BoostedTrees(RegressorMixin, BaseEstimator):
    """XGBoost models, averaged, on what a share of a ridge regression leaves over. For 50 to 1000 pairs.

    The `base`, ridge with interactions or a plain line, carries what is smooth and goes on where no pair is,
    which trees cannot. `base_share` of it is subtracted first, as leave-one-out predictions, so that the
    trees see errors of the size that fresh rows will have. Model b of the bag learns from all rows but those
    of fold b: each row is thus held out exactly once, and a small model of its own learns from the errors on
    held-out rows how large errors are where.

    `bag` 1 is a single model on all rows, without `predict_with_std`; `base_share` 0 is trees alone.
    Always one thread: on tables this small, more threads cost up to a hundred times the time they save.
    """

    def __init__(
        self,
        *,
        trees: int = 150,
        depth: int = 3,
        learning_rate: float = 0.1,
        rows_per_tree: float = 0.7,
        columns_per_tree: float = 1.0,
        bag: int = 6,
        base: Callable[..., Any] = RidgeInteractions,
        base_share: float = 0.4,
        seed: int = 0,
    ) -> None:
        self.trees = trees  # of each model in the bag
        self.depth = depth
        self.learning_rate = learning_rate
        self.rows_per_tree = rows_per_tree  # share of the rows, drawn anew for each tree
        self.columns_per_tree = columns_per_tree
        self.bag = bag
        self.base = base  # gives a ridge with `left_out_` and `contributions`
        self.base_share = base_share
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        if self.bag < 1 or self.trees < 1 or not 0 <= self.base_share <= 1:
            raise ValueError(
                f"bag and trees must be at least 1 and base_share within 0 and 1, got bag {self.bag}, "
                f"trees {self.trees}, base_share {self.base_share}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        rng = np.random.default_rng(self.seed)
        self.mean_, self.scale_ = standardiser(X)
        self.centre_ = float(y.mean())
        deviation = float(y.std())
        self.unit_ = deviation if deviation > 1e-12 * np.abs(y).max() else 1.0
        Z, rest = (X - self.mean_) / self.scale_, y - self.centre_
        self.base_ = None
        if self.base_share > 0:
            self.base_ = self.base().fit(X, y)
            rest = rest - self.base_share * (self.base_.left_out_ - self.centre_)
        rest = rest / self.unit_

        models = min(self.bag, len(y))
        fold = deal(len(y), models, rng)  # each row is held out by one model
        seeds = rng.integers(2**31, size=models)
        self.boosters_ = []
        for b in range(models):
            kept = fold != b if models > 1 else np.full(len(y), True)
            self.boosters_.append(self._boost(Z[kept], rest[kept], int(seeds[b])))
        if models > 1:
            each = self._each(Z)
            missed = rest - each[fold, np.arange(len(y))]
            # A model alone misses by its own variance more than the mean of all of them does.
            alone = (1 - 1 / models) * float(np.mean(each.var(axis=0, ddof=1)))
            self.doubt_, self.error_ = error_sizes(Z, missed, alone, int(rng.integers(2**31)))
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        return self._mean(X, self._each(self._standardised(X)))

    def predict_with_std(self, X: Features) -> tuple[Scores, Scores]:
        """`predict(X)` (m,) and the standard deviation (m,) of a measured score about it, in units of y.

        ValueError when `bag` is 1: one model has no spread.
        """
        Z = self._standardised(X)
        if len(self.boosters_) < 2:
            raise ValueError(f"a bag of {self.bag} has no spread to tell uncertainty from; use bag >= 2")
        return self._mean(X, self._each(Z)), self.unit_ * self.error_ * size(self.doubt_, Z)

    def contributions(self, X: Features) -> Features:
        """What each column adds to each prediction, (m, d + 1) in units of y: rows sum to `predict(X)`.

        The last column is what an average pair is given. A tree adds Shapley values along its paths
        (Lundberg et al. 2020, TreeSHAP, as XGBoost computes them), the base its own. Columns that say the
        same share what they add.
        """
        Z = self._standardised(X)
        table = xgboost.DMatrix(Z.astype(np.float32), nthread=1)
        added = np.zeros((len(Z), Z.shape[1] + 1))
        for model in self.boosters_:
            added += self.unit_ / len(self.boosters_) * model.predict(table, pred_contribs=True)
        added[:, -1] += self.centre_
        if self.base_ is not None:
            added += self.base_share * self.base_.contributions(X)
            added[:, -1] -= self.base_share * self.centre_
        return added

    def _boost(self, Z: Features, rest: Scores, seed: int) -> xgboost.Booster:
        columns = min(1.0, max(self.columns_per_tree, FEWEST_COLUMNS / Z.shape[1]))
        settings = {
            "max_depth": self.depth,
            "learning_rate": self.learning_rate,
            "subsample": self.rows_per_tree,
            "colsample_bytree": columns,
        }
        return boosted(Z, rest, self.trees, {**settings, "seed": seed})

    def _standardised(self, X: Features) -> Features:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        Z: Features = (X - self.mean_) / self.scale_
        return Z

    def _each(self, Z: Features) -> NDArray[np.float64]:
        """What every model of the bag adds to the base, (models, m), in standardised units."""
        narrow = Z.astype(np.float32)  # what XGBoost would turn it into, once for all models
        return np.array([model.inplace_predict(narrow) for model in self.boosters_], dtype=np.float64)

    def _mean(self, X: Features, each: NDArray[np.float64]) -> Scores:
        scores: Scores = self.centre_ + self.unit_ * each.mean(axis=0)
        if self.base_ is not None:
            scores += self.base_share * (self.base_.predict(X) - self.centre_)
        return scores


def error_sizes(Z: Features, missed: Scores, alone: float, seed: int) -> tuple[xgboost.Booster, float]:
    """What is learned from held-out errors (n,) at rows Z (n, d): a model of log squared errors, and the
    factor that brings `size` of it to their root mean square, `alone` subtracted from the square."""
    mean = float(np.mean(missed**2))
    wanted = max(mean - alone, 0.2 * mean)
    logs = np.log(missed**2 + 1e-3 * mean + np.finfo(np.float64).tiny)
    cautious = {"max_depth": 2, "learning_rate": 0.05, "subsample": 0.7, "reg_lambda": 5.0}
    doubt = boosted(Z, logs - logs.mean(), 40, {**cautious, "min_child_weight": 8, "seed": seed})
    return doubt, float(np.sqrt(wanted / np.mean(size(doubt, Z) ** 2)))


def size(doubt: xgboost.Booster, Z: Features) -> Scores:
    """How large errors are at rows (m,), relative to those at others."""
    found: Scores = np.exp(0.5 * doubt.inplace_predict(Z.astype(np.float32)).astype(np.float64))
    return found


def boosted(Z: Features, t: Scores, trees: int, settings: dict[str, float]) -> xgboost.Booster:
    """XGBoost with these settings on a small table: in few bins, from 0, on one thread."""
    common = {"tree_method": "hist", "max_bin": BINS, "base_score": 0.0, "nthread": 1, "verbosity": 0}
    table = xgboost.QuantileDMatrix(Z, t, max_bin=BINS, nthread=1)
    return xgboost.train({**common, **settings}, table, num_boost_round=trees)
