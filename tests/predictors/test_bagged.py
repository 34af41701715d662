"""A bag is the mean of its models, and its spread is the size of errors on rows that were held out."""

from __future__ import annotations

from functools import partial
from typing import Self

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from predictors import UncertainPredictor, make_predictor
from predictors.bagged import Bagged, deal, widening
from predictors.interactions import RidgeInteractions
from predictors.protocol import Features, Scores
from predictors.ridge import StandardisedRidge


def pairs(rows: int, seed: int = 0) -> tuple[Features, Scores]:
    rng = np.random.default_rng(seed)
    X = rng.random((rows, 8))
    return X, X @ np.linspace(-1, 2, 8) + X[:, 0] * X[:, 1] + 0.2 * rng.standard_normal(rows)


class Seen:
    """Remembers which rows it was shown, and with which seed it was made; says 1 of rows it knows."""

    def __init__(self, seed: int = -1) -> None:
        self.seed = seed

    def fit(self, X: Features, y: Scores) -> Self:
        self.rows = {row.tobytes() for row in X}
        return self

    def predict(self, X: Features) -> Scores:
        return np.array([float(row.tobytes() in self.rows) for row in X])


@pytest.mark.parametrize(("rows", "models"), [(3, 3), (23, 10), (40, 10)])
def test_every_row_is_held_out_once(rows: int, models: int) -> None:
    X, y = pairs(rows)
    bag = Bagged(Seen).fit(X, y)
    assert len(bag.predictors_) == models
    assert np.allclose(bag.predict(X), 1 - 1 / models)
    assert len({member.seed for member in bag.predictors_}) == models


def test_it_predicts_the_mean() -> None:
    X, y = pairs(40)
    bag = Bagged(StandardisedRidge, models=4).fit(X, y)
    assert np.allclose(bag.predict(X), np.mean([member.predict(X) for member in bag.predictors_], axis=0))


def test_the_spread_is_the_size_of_held_out_errors() -> None:
    rng = np.random.default_rng(0)
    each, y, fold = rng.normal(size=(5, 60)), rng.normal(size=60), deal(60, 5, rng)
    missed = y - np.array([each[f, i] for i, f in enumerate(fold)])
    spread = widening(each, fold, y) * each.std(axis=0)
    assert np.mean(spread**2) == pytest.approx(np.mean(missed**2))
    assert sorted(np.bincount(fold)) == [12] * 5
    assert widening(np.ones((5, 60)), fold, y) == 1


@pytest.mark.parametrize("make", [StandardisedRidge, RidgeInteractions, partial(RandomForestRegressor, 30)])
def test_errors_on_fresh_rows_are_as_large_as_told(make: type) -> None:
    X, y = pairs(120)
    Q, z = pairs(1000, seed=1)
    bag = Bagged(make).fit(X, y)
    assert isinstance(bag, UncertainPredictor)
    p, std = bag.predict_with_std(Q)
    assert np.array_equal(p, bag.predict(Q))
    assert (std > 0).all()
    assert 0.7 < np.sqrt(np.mean((p - z) ** 2) / np.mean(std**2)) < 1.4
    scaled = Bagged(make).fit(X, 100 * y + 5).predict_with_std(Q)[1]
    assert np.mean(scaled) == pytest.approx(100 * np.mean(std), rel=0.1)


def test_seeds_deal_anew_and_repeat() -> None:
    X, y = pairs(40)
    one, again, other = (
        make_predictor("bagged_ridge_interactions", seed).fit(X, y).predict(X) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_errors_are_sentences_with_numbers() -> None:
    X, y = pairs(10)
    with pytest.raises(ValueError, match="at least 2 models, got 1"):
        Bagged(StandardisedRidge, models=1).fit(X, y)
    with pytest.raises(ValueError, match="2 pairs make one model"):
        Bagged(StandardisedRidge).fit(X[:2], y[:2]).predict_with_std(X)
