"""A learning curve learns from what it says, judges on what was held back, and tells exact from guessing."""

from functools import partial
from typing import Self

import numpy as np
import pytest

from predictors import make_predictor
from predictors.learning import Rows, dealt, learning_curve
from predictors.protocol import Features, Scores

CENTRES = (0.3, 0.6)


def toy(rows: int = 200, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    X = rng.uniform(0, 1, (rows, 6))
    return Rows(X, X @ [1, 2, 3, 1, 2, 3] - (X[:, 0] - 0.5) ** 2, X.mean(1))


class Truth:
    """Knows the answer, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Features] = []

    def fit(self, X: Features, y: Scores) -> Self:
        self.learned = X
        return self

    def predict(self, X: Features) -> Scores:
        self.shown.append(X)
        scores: Scores = X @ [1, 2, 3, 1, 2, 3] - (X[:, 0] - 0.5) ** 2
        return scores


class Nothing(Truth):
    def predict(self, X: Features) -> Scores:
        return np.zeros(len(X))


def test_an_exact_predictor_is_without_fault_and_a_constant_one_worth_nothing() -> None:
    rows, near = toy(), toy(60, seed=1)
    for exact in learning_curve(
        Truth, rows, [10, 50], 0, centres=CENTRES, width=0.3, mutated=near, queries=50
    ):
        taus = [exact.kendall_tau, exact.kendall_tau_in_band, exact.kendall_tau_mutated]
        assert taus == pytest.approx([1.0, 1.0, 1.0])
        assert (exact.precision_at_k, exact.regret) == (1.0, 0.0)
    (none,) = learning_curve(
        Nothing, rows, [10], 0, centres=CENTRES, width=0.3, mutated=near, queries=50, k=3
    )
    assert (none.kendall_tau, none.kendall_tau_in_band, none.kendall_tau_mutated) == (0.0, 0.0, 0.0)
    assert none.precision_at_k == 0.0
    assert none.regret > 0.0


def test_what_is_judged_was_not_learned_from_and_smaller_tables_are_parts_of_larger() -> None:
    rows, made = toy(), []

    def make() -> Truth:
        made.append(Truth())
        return made[-1]

    list(learning_curve(make, rows, [10, 40], 3, centres=CENTRES, width=0.3, queries=20))
    small, large = (each.learned for each in made)
    assert np.array_equal(large[:10], small)
    learned = {row.tobytes() for row in large}
    for each in made:
        assert not learned & {row.tobytes() for batch in each.shown for row in batch}


def test_seeds_deal_anew_and_repeat() -> None:
    rows = toy()
    for seed in (0, 1):
        known, fresh = dealt(rows, seed)
        assert len(known) + len(fresh) == len(rows)
        assert len(fresh) == 80
    assert not np.array_equal(dealt(rows, 0)[0].y, dealt(rows, 1)[0].y)
    assert np.array_equal(dealt(rows, 1)[0].y, dealt(rows, 1)[0].y)


def test_without_mutations_or_a_band_nothing_is_claimed() -> None:
    (found,) = learning_curve(Truth, toy(), [10], 0, centres=(5.0,), queries=10)
    assert np.isnan(
        [found.kendall_tau_mutated, found.kendall_tau_in_band, found.precision_at_k, found.regret]
    ).all()
    assert found.rows_in_band == 0


def test_more_pairs_make_a_better_line() -> None:
    ridge = partial(make_predictor, "ridge")
    curve = list(learning_curve(ridge, toy(), [4, 100], 0, centres=CENTRES, width=0.3, queries=10))
    assert curve[1].kendall_tau > curve[0].kendall_tau
    assert [each.pairs for each in curve] == [4, 100]


def test_sizes_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="between 2 and 120 pairs, got 10 to 121"):
        list(learning_curve(Truth, toy(), [10, 121], 0, centres=CENTRES))
