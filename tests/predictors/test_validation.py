"""A verdict is computed on held-out rows alone, and tells a good predictor from a useless one."""

from __future__ import annotations

from math import isnan
from typing import Self

import numpy as np
import pytest

from predictors import make_predictor
from predictors.metrics import kendall_tau
from predictors.protocol import Features, Scores
from predictors.ridge import StandardisedRidge
from predictors.validation import out_of_fold, verdict

KEYS = {"kendall_tau", "kendall_tau_in_band", "precision_at_k", "regret", "r2", "pairs", "k", "band"}


def toy(rows: int, seed: int = 0) -> tuple[Features, Scores, Scores]:
    """Twelve widths in eighths, a saturating score, and the mean width as cost."""
    X = np.random.default_rng(seed).integers(1, 9, (rows, 12)) / 8
    return X, (1 - np.exp(-3 * X)) @ np.linspace(0.5, 2, 12), X.mean(axis=1)


class Remembers:
    """Knows by heart the rows that it has seen; elsewhere it says -1."""

    def fit(self, X: Features, y: Scores) -> Self:
        self.seen = {row.tobytes(): score for row, score in zip(X, y, strict=True)}
        return self

    def predict(self, X: Features) -> Scores:
        return np.array([self.seen.get(row.tobytes(), -1.0) for row in X])


class Guesses(Remembers):
    def predict(self, X: Features) -> Scores:
        return np.array([np.random.default_rng(list(row.tobytes())).random() for row in X])


class KnowsTheTruth(Remembers):
    def predict(self, X: Features) -> Scores:
        return (1 - np.exp(-3 * X)) @ np.linspace(0.5, 2, 12)


def test_no_row_is_predicted_by_who_has_seen_it() -> None:
    X, y, _ = toy(23)
    assert np.array_equal(out_of_fold(Remembers, X, y, folds=4, repeats=2), np.full((2, 23), -1.0))


def test_repeats_deal_anew_and_seeds_repeat() -> None:
    X, y, _ = toy(30)
    first = out_of_fold(StandardisedRidge, X, y, repeats=3, seed=1)
    assert first.shape == (3, 30)
    assert np.array_equal(first, out_of_fold(StandardisedRidge, X, y, repeats=3, seed=1))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, out_of_fold(StandardisedRidge, X, y, repeats=3, seed=2))


def test_as_many_folds_as_rows_is_leave_one_out() -> None:
    X, y, _ = toy(12)
    alone = [
        StandardisedRidge().fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[[i]])[0] for i in range(12)
    ]
    assert np.allclose(out_of_fold(StandardisedRidge, X, y, folds=12)[0], alone)


def test_the_truth_is_without_fault() -> None:
    X, y, cost = toy(100)
    told = verdict(y, out_of_fold(KnowsTheTruth, X, y, repeats=3), cost, 0.55)
    assert set(told) >= KEYS
    assert told["kendall_tau"] == pytest.approx(1)
    assert told["kendall_tau_in_band"] == pytest.approx(1)
    assert told["precision_at_k"] == 1
    assert told["regret"] == 0
    assert told["r2"] == 1
    assert (told["pairs"], told["repeats"]) == (100, 3)


def test_guessing_is_told_from_knowing() -> None:
    X, y, cost = toy(120)
    guessed, learned = (
        verdict(y, out_of_fold(make, X, y, repeats=3), cost, 0.55) for make in (Guesses, StandardisedRidge)
    )
    assert abs(guessed["kendall_tau"]) < 0.2
    assert learned["kendall_tau"] > 0.7
    assert learned["kendall_tau_in_band"] > guessed["kendall_tau_in_band"] + 0.3
    assert learned["regret"] <= guessed["regret"]
    assert learned["kendall_tau"] == pytest.approx(
        np.mean([kendall_tau(y, p) for p in out_of_fold(StandardisedRidge, X, y, repeats=3)])
    )


@pytest.mark.parametrize("name", ["xgboost", "ridge"])
def test_ten_pairs_are_enough(name: str) -> None:
    X, y, cost = toy(10)
    told = verdict(y, out_of_fold(lambda: make_predictor(name), X, y), cost, 0.55)
    assert not any(isnan(value) for value in told.values())
    assert (told["rows_in_band"], told["k"]) == (10, 2)
    assert told["band"] == pytest.approx(np.max(np.abs(cost - 0.55)) / 0.55)


def test_the_band_says_how_wide_it_had_to_be() -> None:
    X, y, cost = toy(300)
    held_out = out_of_fold(StandardisedRidge, X, y)
    asked = verdict(y, held_out, cost, 0.55)
    assert asked["band"] == 0.05 and asked["rows_in_band"] >= 20
    edge = verdict(y, held_out, cost, 0.3)
    assert edge["band"] > 0.05 and edge["rows_in_band"] >= 20
    assert verdict(y, held_out, cost, 0.55, k=1000)["k"] == asked["rows_in_band"]


def test_errors_are_sentences_with_numbers() -> None:
    X, y, cost = toy(10)
    with pytest.raises(ValueError, match="at least 10 pairs .* got 9 scores, 9 predictions and 9 costs"):
        verdict(y[:9], y[:9], cost[:9], 0.5)
    with pytest.raises(ValueError, match="got 10 scores, 10 predictions and 9 costs"):
        verdict(y, y, cost[:9], 0.5)
    with pytest.raises(ValueError, match="got 10 scores, 9 predictions and 10 costs"):
        verdict(y, y[None, :9], cost, 0.5)
    with pytest.raises(ValueError, match="got 11 folds, 10 pairs"):
        out_of_fold(StandardisedRidge, X, y, folds=11)
    with pytest.raises(ValueError, match="9 rows of features for 10 scores"):
        out_of_fold(StandardisedRidge, X[:9], y)
    with pytest.raises(ValueError, match="positive cost, got -1"):
        verdict(y, y, cost, -1)
