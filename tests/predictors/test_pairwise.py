"""A ranker sees order alone, and a line through held-out margins gives its answers units."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from predictors.pairwise import PairwiseTrees
from predictors.protocol import Features, Scores
from predictors.validation import out_of_fold


def pairs(rows: int, seed: int = 0) -> tuple[Features, Scores]:
    rng = np.random.default_rng(seed)
    X = rng.integers(1, 9, (rows, 10)) / 8
    return X, (1 - np.exp(-3 * X)) @ np.linspace(0.5, 2, 10) + X[:, 0] * X[:, 1]


def test_what_keeps_the_order_of_scores_keeps_that_of_predictions() -> None:
    X, y = pairs(60)
    Q, _ = pairs(200, seed=1)
    plain = PairwiseTrees().fit(X, y).predict(Q)
    for bent in (np.exp(y), -np.exp(-3 * y), y**3):
        assert np.array_equal(np.argsort(PairwiseTrees().fit(X, bent).predict(Q)), np.argsort(plain))


def test_scores_in_other_units_are_predictions_in_these_units() -> None:
    X, y = pairs(60)
    plain = PairwiseTrees().fit(X, y)
    assert np.allclose(PairwiseTrees().fit(X, 1e6 * y - 7).predict(X), 1e6 * plain.predict(X) - 7)
    # Nor does a tiny spread on a large mean matter, which single precision would round away.
    assert np.allclose(PairwiseTrees().fit(X, 1e-6 * y + 1e3).predict(X), 1e-6 * plain.predict(X) + 1e3)


def test_held_out_predictions_have_the_scale_of_the_scores() -> None:
    X, y = pairs(120)
    held_out = out_of_fold(PairwiseTrees, X, y)[0]
    slope, _ = np.polyfit(held_out, y, 1)
    assert 0.7 < slope < 1.3  # margins of learned rows would make it far less than 1
    assert spearmanr(held_out, y).statistic > 0.8


def test_where_there_is_no_order_the_mean_is_predicted() -> None:
    X, _ = pairs(40)
    y = np.random.default_rng(5).normal(size=40)
    model = PairwiseTrees().fit(X, y)
    assert model.slope_ >= 0
    assert model.predict(X).std() < y.std()
    for rows in (2, 3):
        assert np.allclose(
            PairwiseTrees().fit(X[:rows], y[:rows]).predict(X), y[:rows].mean(), atol=3 * y.std()
        )


def test_settings_out_of_range_are_named() -> None:
    X, y = pairs(10)
    with pytest.raises(ValueError, match="got bag 1, trees 500, pairs_per_row 16"):
        PairwiseTrees(bag=1).fit(X, y)
