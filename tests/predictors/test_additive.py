"""A sum of one function a column: one-block-replacement scores add up, and in its limits it is ridge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from predictors.additive import Additive, Curve, one_at_a_time
from predictors.protocol import Features, Scores
from predictors.ridge import StandardisedRidge


def one_block_replaced(choices: int, columns: int = 10, seed: int = 0) -> tuple[Features, Scores, Scores]:
    """A table of single replacements, its scores, and what each choice (columns, choices) costs alone."""
    rng = np.random.default_rng(seed)
    costs = np.hstack([rng.gamma(2.0, 0.1, (columns, choices - 1)), np.zeros((columns, 1))])
    values = np.sort(rng.random((columns, choices)), axis=1)
    full = np.full(columns, choices - 1)
    rows = [full]
    for j in range(columns):
        for choice in range(choices - 1):
            rows.append(np.where(np.arange(columns) == j, choice, full))
    chosen = rng.permutation(np.array(rows))
    return (
        np.take_along_axis(values.T, chosen, axis=0),
        -total(costs, chosen) - 3.0,
        np.dstack([values, costs]),
    )


def total(costs: Scores, chosen: Features) -> Scores:
    return costs[np.arange(costs.shape[0]), chosen].sum(axis=1)


@pytest.mark.parametrize("choices", [2, 6, 20])  # a dropped block; some widths; more than there are knots
def test_single_scores_add_up(choices: int) -> None:
    X, y, known = one_block_replaced(choices)
    model = Additive().fit(X, y)
    assert np.allclose(model.predict(X), y, atol=1e-5)
    chosen = np.random.default_rng(1).integers(0, choices, (200, 10))
    Q = known[np.arange(10), chosen, 0]
    several = -3.0 - total(known[..., 1], chosen)
    assert np.std(several) > 0.2
    assert np.allclose(model.predict(Q), several, atol=1e-4)


def test_single_scores_add_up_beside_columns_that_follow_from_others() -> None:
    X, y, _ = one_block_replaced(5)
    wide = np.column_stack([X.mean(axis=1), X, X.min(axis=1)])
    model = Additive(columns=tuple(range(1, 11))).fit(wide, y)
    assert np.allclose(model.predict(wide), Additive().fit(X, y).predict(X))
    # What is not used may say anything.
    wide[:, 0] = 7.0
    assert np.allclose(model.predict(wide), y, atol=1e-5)


def test_of_a_row_measured_twice_the_mean_is_reproduced() -> None:
    X, y, _ = one_block_replaced(4)
    model = Additive().fit(np.vstack([X, X]), np.concatenate([y + 0.1, y - 0.1]))
    assert np.allclose(model.predict(X), y, atol=1e-5)


def test_a_table_of_single_replacements_is_recognised() -> None:
    X, _, _ = one_block_replaced(4)
    assert one_at_a_time(X)
    X[5] = X[[4, 6, 8]].min(axis=0)  # two or three at a time
    assert not one_at_a_time(X)
    # One column alone is a curve like any other: noise in it is to be smoothed.
    assert not one_at_a_time(np.arange(10.0)[:, None])


def scattered(rows: int, columns: int, choices: int, seed: int = 0) -> tuple[Features, Scores]:
    rng = np.random.default_rng(seed)
    X = rng.integers(0, choices, (rows, columns)) / choices
    return X, (1 - np.exp(-4 * X)) @ np.linspace(0.5, 2, columns) + 0.1 * rng.standard_normal(rows)


def test_without_bends_it_is_ridge() -> None:
    X, y = scattered(60, 8, 6)
    Q = 2 * np.random.default_rng(1).random((50, 8)) - 0.5  # beyond the outer knots too
    straight = Additive(bends=(1e9,)).fit(X, y)
    line = StandardisedRidge().fit(X, y)
    assert straight.penalty_ == line.penalty_
    assert np.allclose(straight.predict(Q), line.predict(Q), atol=1e-5)
    assert np.abs(Additive(bends=(0.1,)).fit(X, y).predict(Q) - line.predict(Q)).max() > 0.1


def test_on_columns_of_two_values_it_is_ridge() -> None:
    X, y = scattered(60, 8, 2)
    for bend in (0.0, 1.0):
        assert np.allclose(
            Additive(bends=(bend,)).fit(X, y).predict(X), StandardisedRidge().fit(X, y).predict(X)
        )


def test_what_a_column_adds_does_not_depend_on_the_others() -> None:
    X, y = scattered(80, 6, 5)
    model = Additive().fit(X, y + X[:, 0] * X[:, 1])
    a, b = np.random.default_rng(1).random((2, 40, 6))
    mixed = [np.where(np.arange(6) == 2, one, other) for one, other in ((a, b), (b, a))]
    assert np.allclose(model.predict(a) + model.predict(b), sum(map(model.predict, mixed)))
    assert np.allclose(model.predict(a), y.mean() + np.mean(X[:, 0] * X[:, 1]) + curves(model, a))
    assert np.allclose(curves(model, X).mean(), 0)


def curves(model: Additive, X: Features) -> Scores:
    return np.sum([curve(X[:, curve.column]) for curve in model.curves_], axis=0)


def test_bent_columns_are_learned_better_than_by_a_line() -> None:
    Q = np.random.default_rng(9).integers(0, 8, (300, 10)) / 8
    exact = (1 - np.exp(-4 * Q)) @ np.linspace(0.5, 2, 10)
    for rows in (60, 200):
        X, y = scattered(rows, 10, 8, seed=3)
        bent, straight = (
            spearmanr(make().fit(X, y).predict(Q), exact).statistic for make in (Additive, StandardisedRidge)
        )
        assert bent > straight


def test_columns_of_many_values_have_a_few_knots() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=400), rng.integers(0, 3, 400), np.full(400, 0.1)])
    model = Additive(knots=5).fit(X, np.abs(X[:, 0]) + X[:, 1])
    assert [(curve.column, len(curve.knots)) for curve in model.curves_] == [(0, 5), (1, 3)]
    assert model.curves_[0].knots[[0, -1]].tolist() == [X[:, 0].min(), X[:, 0].max()]


def test_values_apart_by_rounding_are_one() -> None:
    X = np.array([[0.3, 0.0], [0.1 + 0.2, 1.0], [0.5, 0.0], [0.7, 1.0], [0.9, 2.0]])
    model = Additive().fit(X, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert len(model.curves_[0].knots) == 4
    assert np.abs(model.predict(np.array([[0.0, 0.0], [1.2, 2.0]]))).max() < 10


def test_a_curve_goes_straight_on() -> None:
    curve = Curve(0, np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 1.0]))
    assert curve(np.array([-1.0, 0.5, 1.0, 2.0, 5.0])).tolist() == [-2.0, 1.0, 2.0, 1.5, 0.0]


def test_errors_are_sentences_with_numbers() -> None:
    X, y = scattered(10, 4, 3)
    for columns in ((), (0, 4), (-1,), (1, 1)):
        with pytest.raises(ValueError, match=r"different and from 0 to 3, got \("):
            Additive(columns=columns).fit(X, y)
    with pytest.raises(ValueError, match=r"knots must be at least 2.* got 1 and"):
        Additive(knots=1).fit(X, y)
    with pytest.raises(ValueError, match=r"not negative, got 9 and \(-1.0,\)"):
        Additive(bends=(-1.0,)).fit(X, y)
