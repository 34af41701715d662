"""Ridge on squares and products through kernels is ridge on squares and products written out."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from predictors.interactions import RidgeInteractions, centred
from predictors.protocol import Features
from predictors.ridge import StandardisedRidge, ridge, ridge_of_kernel, standardiser


def written_out(Z: Features, share: float, unit: float) -> Features:
    """All columns, squares and products of Z (n, d), weighted as the kernels are."""
    squares = [Z[:, j] ** 2 for j in range(Z.shape[1])]
    products = [np.sqrt(2) * Z[:, j] * Z[:, k] for j, k in combinations(range(Z.shape[1]), 2)]
    return np.hstack([np.sqrt(1 - share) * Z, np.sqrt(share * unit) * np.column_stack(squares + products)])


@pytest.mark.parametrize("rows", [12, 60])
def test_it_is_ridge_on_all_of_them_written_out(rows: int) -> None:
    rng = np.random.default_rng(0)
    X, Q, y = rng.random((rows, 6)), rng.random((20, 6)), rng.normal(size=rows)
    share, penalty = 0.3, 0.1
    mean, scale = standardiser(X)
    Z, z = (X - mean) / scale, (Q - mean) / scale
    squares = written_out(Z, 1.0, 1.0)
    unit = np.sum(Z**2) / np.sum((squares - squares.mean(axis=0)) ** 2)
    told = (
        Ridge(alpha=penalty * rows).fit(written_out(Z, share, unit), y).predict(written_out(z, share, unit))
    )
    assert np.allclose(RidgeInteractions(penalties=(penalty,), shares=(share,)).fit(X, y).predict(Q), told)


@pytest.mark.parametrize(("rows", "columns"), [(30, 8), (15, 40)])
def test_ridge_from_the_kernel_is_ridge(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    Z, t = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    Z, t = Z - Z.mean(axis=0), t - t.mean()
    line, dual = ridge(Z, t), ridge_of_kernel(Z @ Z.T, t)
    assert dual.penalty == line.penalty
    assert np.allclose(Z.T @ dual.weights, line.weights)
    assert np.allclose(dual.left_out, line.left_out)


def test_centring_a_kernel_is_centring_its_columns() -> None:
    Z = np.random.default_rng(0).random((9, 4))
    assert np.allclose(centred(Z @ Z.T), (Z - Z.mean(axis=0)) @ (Z - Z.mean(axis=0)).T)


def test_no_share_for_products_is_the_line() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 6)), rng.normal(size=40)
    model, line = RidgeInteractions(shares=(0.0,)).fit(X, y), StandardisedRidge().fit(X, y)
    assert model.penalty_ == line.penalty_
    assert np.allclose(model.predict(X), line.predict(X))


def test_products_are_learned_and_only_where_there_are_any() -> None:
    rng = np.random.default_rng(0)
    X, Q = rng.choice([-1.0, 1.0], (100, 10)), rng.choice([-1.0, 1.0], (200, 10))
    model = RidgeInteractions().fit(X, X[:, 0] * X[:, 1] + 0.3 * X[:, 2])
    assert spearmanr(model.predict(Q), Q[:, 0] * Q[:, 1] + 0.3 * Q[:, 2]).statistic > 0.9
    assert model.share_ > 0.3
    assert np.allclose(model.products_, model.products_.T)
    assert np.unravel_index(np.abs(model.products_).argmax(), (10, 10)) in ((0, 1), (1, 0))
    noisy = X @ np.arange(10.0) + rng.normal(size=100)
    assert RidgeInteractions().fit(X, noisy).share_ == 0


def test_products_that_never_vary_are_left_alone() -> None:
    X = np.tile([[-1.0], [1.0]], (10, 1))
    model = RidgeInteractions(shares=(0.5,)).fit(X, X[:, 0])
    assert not model.products_.any()
    assert np.allclose(model.predict(X), X[:, 0], atol=1e-3)


def test_fast_at_the_size_of_a_search() -> None:
    rng = np.random.default_rng(0)
    X, y, Q = rng.random((300, 70)), rng.random(300), rng.random((100_000, 70))
    start = time.process_time()
    model = RidgeInteractions().fit(X, y)
    fitted = time.process_time()
    model.predict(Q)
    assert fitted - start < 1
    assert time.process_time() - fitted < 2


def test_settings_out_of_range_are_named() -> None:
    X, y = np.eye(5), np.arange(5.0)
    for shares in ((), (1.0,), (-0.1, 0.5)):
        with pytest.raises(ValueError, match=r"from 0 to below 1, got \("):
            RidgeInteractions(shares=shares).fit(X, y)
    with pytest.raises(ValueError, match=r"penalties must be positive and at least one, got \(0.0,\)"):
        RidgeInteractions(penalties=(0.0,)).fit(X, y)
