"""XGBoost that learns which of two rows is better, and nothing else, brought back to the units of the scores.

A search needs the order of rows, so this asks for it: `rank:pairwise` raises the chance that the better row
of a pair gets the larger margin (RankNet, Burges et al. 2005). XGBoost's default draws its pairs from the
head of the list and learns next to nothing from a few hundred rows; pairs drawn at random (`mean`) do.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import xgboost
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.bagged import deal
from predictors.gbdt import BINS, FEWEST_COLUMNS
from predictors.protocol import Features, Scores


class PairwiseTrees(RegressorMixin, BaseEstimator):
    """A bag of XGBoost rankers, all rows in one group; the mean margin m predicts intercept + slope m.

    Model b learns from all rows but those of fold b, and intercept and slope are least squares of the scores
    on margins of held-out rows: margins of learned rows are far too sure of themselves, and a line, unlike
    isotonic regression, makes no ties. The slope is never negative; where no order was found it is 0 and the
    mean of y is predicted. After `fit`: `boosters_`, `slope_`, `intercept_`.
    """

    def __init__(
        self,
        *,
        trees: int = 500,
        depth: int = 2,
        learning_rate: float = 0.05,
        rows_per_tree: float = 0.8,
        columns_per_tree: float = 0.3,
        pairs_per_row: int = 16,
        bag: int = 5,
        seed: int = 0,
    ) -> None:
        self.trees = trees  # of each model in the bag
        self.depth = depth
        self.learning_rate = learning_rate
        self.rows_per_tree = rows_per_tree  # share of the rows, drawn anew for each tree
        self.columns_per_tree = columns_per_tree
        self.pairs_per_row = pairs_per_row  # others that a row is compared with, drawn anew for each tree
        self.bag = bag
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), n >= 2; ValueError on NaN, infinity or unequal lengths."""
        if self.bag < 2 or self.trees < 1 or self.pairs_per_row < 1:
            raise ValueError(
                f"bag must be at least 2, trees and pairs_per_row at least 1, got bag {self.bag}, "
                f"trees {self.trees}, pairs_per_row {self.pairs_per_row}"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        rng = np.random.default_rng(self.seed)
        models = min(self.bag, len(y))
        fold = deal(len(y), models, rng)
        seeds = rng.integers(2**31, size=models)
        # Ranks, for single precision tells scores apart no better than to 7 digits.
        ranks = rankdata(y, method="dense") - 1.0
        self.boosters_ = [
            self._boost(X[fold != b], ranks[fold != b], int(seed)) for b, seed in enumerate(seeds)
        ]
        held_out = self._margins(X)[fold, np.arange(len(y))]
        around = held_out - held_out.mean()
        squares = float(around @ around)
        self.slope_ = max(0.0, float(around @ y) / squares) if squares > 0 else 0.0
        self.intercept_ = float(y.mean() - self.slope_ * held_out.mean())
        return self

    def predict(self, X: Features) -> Scores:
        """Scores (m,) for X (m, d); ValueError before `fit` or when d is not the learned width."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Scores = self.intercept_ + self.slope_ * self._margins(X).mean(axis=0)
        return scores

    def _boost(self, X: Features, ranks: Scores, seed: int) -> xgboost.Booster:
        settings = {
            "objective": "rank:pairwise",
            "lambdarank_pair_method": "mean",
            "lambdarank_num_pair_per_sample": self.pairs_per_row,
            "max_depth": self.depth,
            "learning_rate": self.learning_rate,
            "subsample": self.rows_per_tree,
            "colsample_bytree": min(1.0, max(self.columns_per_tree, FEWEST_COLUMNS / X.shape[1])),
            "tree_method": "hist",
            "max_bin": BINS,
            "base_score": 0.0,
            "nthread": 1,
            "seed": seed,
            "verbosity": 0,
        }
        table = xgboost.QuantileDMatrix(X, ranks, group=[len(X)], max_bin=BINS, nthread=1)
        return xgboost.train(settings, table, num_boost_round=self.trees)

    def _margins(self, X: Features) -> NDArray[np.float64]:
        """What every model of the bag says, (models, m); its differences alone mean something."""
        narrow = X.astype(np.float32)
        return np.array([model.inplace_predict(narrow) for model in self.boosters_], dtype=np.float64)
