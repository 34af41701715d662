"""Gradient-boosted trees for a few hundred pairs: half a ridge line, and a bag of XGBoost models on the rest.

Kendall's tau among fresh rows of about equal cost, mean over three synthetic truths and 6 draws of each, from
50 / 150 / 400 pairs in 63 columns (`python -m benchmarks.predictors --draws 6`):

    ridge    .47 .64 .70   one model .47 .65 .73   ridge, then one .49 .68 .75   half, then one .51 .71 .78
                           bag of 8  .52 .67 .74   ridge, then bag .50 .68 .76   half, then bag .53 .72 .79

Where scores fall off a cliff, a whole line costs much (.48 against .63 for the bag alone) and half a line
less (.58); with such scores and only 50 pairs, prefer `ridge_share` 0 (.52 against .38). Fit of 200 x 60:
0.45 s of one core; predict: 60,000 rows/s in batches of 1000, 700/s one by one. The error made is 1.1 times
the reported standard deviation, on average, which tells large errors from small ones only weakly (Spearman
.2).
"""

from __future__ import annotations

from typing import Self

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.bagged import deal, widening
from predictors.protocol import Features, Scores
from predictors.ridge import ridge, standardiser

BINS = 64  # of a column: as good as 256 for so few rows, and twice as fast
FEWEST_COLUMNS = 8  # that a tree is shown, if there are as many: from fewer it could not learn interactions


class BoostedTrees(RegressorMixin, BaseEstimator):
    """XGBoost models, averaged, on what a share of a ridge line leaves over. Made for 40 to 1000 pairs.

    The line carries what is additive and extrapolates, which trees cannot; `ridge_share` of it is subtracted
    first, as leave-one-out predictions, so that the trees see errors of the size that fresh rows will have.
    Model b of the bag learns from all rows but those of fold b, and the spread of the bag is scaled so that
    it agrees with the errors on held-out rows, as in `predictors.bagged`.

    `bag` 1 is a single model on all rows, without `predict_with_std`; `ridge_share` 0 is trees alone.
    Always one thread: on tables this small, more threads cost up to a hundred times the time they save.
    """

    def __init__(
        self,
        *,
        trees: int = 300,
        depth: int = 3,
        learning_rate: float = 0.05,
        rows_per_tree: float = 0.5,
        columns_per_tree: float = 0.3,
        bag: int = 8,
        ridge_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.trees = trees  # of each model in the bag
        self.depth = depth
        self.learning_rate = learning_rate
        self.rows_per_tree = rows_per_tree  # share of the rows, drawn anew for each tree
        self.columns_per_tree = columns_per_tree
        self.bag = bag
        self.ridge_share = ridge_share
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        if self.bag < 1 or self.trees < 1 or not 0 <= self.ridge_share <= 1:
            raise ValueError(
                f"bag and trees must be at least 1 and ridge_share within 0 and 1, got bag {self.bag}, "
                f"trees {self.trees}, ridge_share {self.ridge_share}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        rng = np.random.default_rng(self.seed)
        self.mean_, self.scale_ = standardiser(X)
        self.centre_ = float(y.mean())
        deviation = float(y.std())
        self.unit_ = deviation if deviation > 1e-12 * np.abs(y).max() else 1.0
        Z, t = (X - self.mean_) / self.scale_, (y - self.centre_) / self.unit_

        line = ridge(Z, t)
        self.weights_ = self.ridge_share * line.weights
        rest = t - self.ridge_share * line.left_out

        models = min(self.bag, len(t))
        fold = deal(len(t), models, rng)  # each row is held out by one model
        seeds = rng.integers(2**31, size=models)
        self.boosters_ = []
        for b in range(models):
            kept = fold != b if models > 1 else np.full(len(t), True)
            self.boosters_.append(self._boost(Z[kept], rest[kept], int(seeds[b])))
        if models > 1:
            self.widening_ = widening(self._each(Z), fold, rest)
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        Z = self._standardised(X)
        return self._mean(Z, self._each(Z))

    def predict_with_std(self, X: Features) -> tuple[Scores, Scores]:
        """`predict(X)` (m,) and the standard deviation (m,) of a measured score about it, in units of y.

        ValueError when `bag` is 1: one model has no spread.
        """
        Z = self._standardised(X)
        if len(self.boosters_) < 2:
            raise ValueError(f"a bag of {self.bag} has no spread to tell uncertainty from; use bag >= 2")
        each = self._each(Z)
        return self._mean(Z, each), self.unit_ * self.widening_ * each.std(axis=0)

    def contributions(self, X: Features) -> Features:
        """What each column adds to each prediction, (m, d + 1) in units of y: rows sum to `predict(X)`.

        The last column is what an average pair is given. The line adds its weight times the distance from
        the column's mean; a tree adds Shapley values along its paths (Lundberg et al. 2020, TreeSHAP, as
        XGBoost computes them). Columns that say the same share what they add.
        """
        Z = self._standardised(X)
        table = xgboost.DMatrix(Z.astype(np.float32), nthread=1)
        each = np.zeros((len(Z), Z.shape[1] + 1))
        for model in self.boosters_:
            each += model.predict(table, pred_contribs=True) / len(self.boosters_)
        each[:, :-1] += Z * self.weights_
        added: Features = self.unit_ * each
        added[:, -1] += self.centre_
        return added

    def _boost(self, Z: Features, rest: Scores, seed: int) -> xgboost.Booster:
        settings = {
            "max_depth": self.depth,
            "learning_rate": self.learning_rate,
            "subsample": self.rows_per_tree,
            "colsample_bytree": min(1.0, max(self.columns_per_tree, FEWEST_COLUMNS / Z.shape[1])),
            "tree_method": "hist",
            "max_bin": BINS,
            "base_score": 0.0,
            "nthread": 1,
            "seed": seed,
            "verbosity": 0,
        }
        table = xgboost.QuantileDMatrix(Z, rest, max_bin=BINS, nthread=1)
        return xgboost.train(settings, table, num_boost_round=self.trees)

    def _standardised(self, X: Features) -> Features:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        Z: Features = (X - self.mean_) / self.scale_
        return Z

    def _each(self, Z: Features) -> NDArray[np.float64]:
        """What every model of the bag adds to the line, (models, m), in standardised units."""
        narrow = Z.astype(np.float32)  # what XGBoost would turn it into, once for all models
        return np.array([model.inplace_predict(narrow) for model in self.boosters_], dtype=np.float64)

    def _mean(self, Z: Features, each: NDArray[np.float64]) -> Scores:
        scores: Scores = self.centre_ + self.unit_ * (Z @ self.weights_ + each.mean(axis=0))
        return scores
