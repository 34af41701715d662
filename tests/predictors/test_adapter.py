"""Through the adapter any regressor sees unit columns and scores, and keeps promises that it never made."""

from __future__ import annotations

import sys
from typing import Any, Self

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVR

from predictors import PREDICTORS, UncertainPredictor, make_predictor
from predictors.adapter import BATCH, Standardised, StandardisedWithStd
from predictors.contract import check_predictor
from predictors.lightgbm import small_leaves
from predictors.protocol import Features, Scores
from predictors.stock import gaussian_process


def pairs(rows: int, columns: int = 6, seed: int = 0) -> tuple[Features, Scores]:
    rng = np.random.default_rng(seed)
    X = rng.random((rows, columns))
    return X, np.sin(3 * X).sum(axis=1) + 0.1 * rng.standard_normal(rows)


class Told:
    """Keeps what it is told."""

    def __init__(self, *, seed: int, n_jobs: int, rows: int, columns: int, leaves: int = 4) -> None:
        self.settings = seed, n_jobs, rows, columns, leaves

    def fit(self, X: Features, y: Scores) -> Self:
        self.X, self.y = X, y
        return self

    def predict(self, X: Features) -> Any:
        return X[:, 0].astype(np.float32)


def test_a_regressor_is_told_what_it_asks_for_and_nothing_else() -> None:
    X, y = pairs(20)
    assert Standardised(Told, seed=5).fit(X, y).model_.settings == (5, 1, 20, 6, 4)
    assert Standardised(KNeighborsRegressor).fit(X, y).model_.n_jobs == 1
    assert Standardised(MLPRegressor, seed=5).fit(X, y).model_.random_state == 5


def test_it_sees_unit_columns_and_scores() -> None:
    X, y = pairs(20)
    model = Standardised(Told).fit(np.column_stack([X, np.full(20, 0.1)]), 1000 * y + 5)
    seen = model.model_
    assert np.allclose([seen.X[:, :-1].mean(axis=0), seen.X[:, :-1].std(axis=0)], [[0.0] * 6, [1.0] * 6])
    assert not seen.X[:, -1].any()
    assert np.allclose([seen.y.mean(), seen.y.std()], [0, 1])
    assert model.predict(np.column_stack([X, X[:, 0]])).dtype == np.float64


@pytest.mark.parametrize("name", ["kernel_ridge", "svr", "gaussian_process", "random_forest", "lightgbm"])
def test_units_of_columns_do_not_matter(name: str) -> None:
    X, y = pairs(80)
    plain, other = (
        make_predictor(name).fit(X * scale + shift, y).predict(X * scale + shift)
        for scale, shift in ((1.0, 0.0), (2.0 ** np.arange(-10, 14, 4), 0.5))
    )
    assert np.corrcoef(plain, y)[0, 1] > 0.9
    assert np.allclose(plain, other, atol=0.1 * y.std())


def test_a_regressor_that_breaks_promises_keeps_them_through_the_adapter() -> None:
    with pytest.raises(AssertionError, match="promises broken:"):
        check_predictor(SVR)  # knows no units and draws global random numbers
    check_predictor(lambda: Standardised(SVR))


def test_many_rows_are_predicted_in_batches() -> None:
    X, y = pairs(30)
    model = Standardised(KNeighborsRegressor).fit(X, y)
    Q, _ = pairs(2 * BATCH + 3, seed=1)
    p = model.predict(Q)
    assert p.shape == (len(Q),)
    assert np.allclose(p[BATCH - 2 : BATCH + 2], model.predict(Q[BATCH - 2 : BATCH + 2]))


def test_a_gaussian_process_knows_where_it_knows_nothing() -> None:
    X, y = pairs(100)
    for scale in (1.0, 1000.0):
        model = StandardisedWithStd(gaussian_process).fit(X, scale * y)
        near, far = (model.predict_with_std(Q)[1] for Q in (X, X + 20))
        assert np.array_equal(model.predict_with_std(X)[0], model.predict(X))
        assert far.min() > 3 * near.max()
        assert 0.05 < near.mean() / scale < 0.2  # the noise is 0.1
    constant = StandardisedWithStd(gaussian_process).fit(X, np.full(100, 3.0))
    assert [part.tolist() for part in constant.predict_with_std(X[:2])] == [[3.0, 3.0], [0.0, 0.0]]


def test_only_those_tell_a_deviation_who_know_one() -> None:
    sure = {name for name in PREDICTORS if isinstance(make_predictor(name), UncertainPredictor)}
    assert {"gaussian_process", "bagged_ridge_interactions", "xgboost"} <= sure
    assert not sure & {"kernel_ridge", "svr", "random_forest", "lightgbm", "ridge", "additive"}


def test_leaves_follow_the_number_of_pairs() -> None:
    sizes = [small_leaves(rows, random_state=0).min_child_samples for rows in (2, 40, 300, 5000)]
    assert sizes == [1, 1, 10, 20]


def test_without_lightgbm_the_extra_is_named_before_anything_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    monkeypatch.delitem(sys.modules, "predictors.lightgbm")
    with pytest.raises(
        ValueError, match=r"'predictors.lightgbm:small_leaves' cannot be imported: .*predictors\]"
    ):
        make_predictor("lightgbm")
