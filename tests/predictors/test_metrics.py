"""The metrics against their definitions counted out, and the laws that hold for any scores."""

from __future__ import annotations

from itertools import combinations
from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from predictors.metrics import (
    in_band,
    kendall_tau,
    kendall_tau_in_band,
    precision_at_k,
    r2,
    regret,
    widened,
)

# Few values, so that ties are common.
scores = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 3), min_size=n, max_size=n) for _ in range(2)))
)


def counted_tau(y: list[int], p: list[int]) -> float:
    pairs = list(combinations(range(len(y)), 2))
    agree = sum(np.sign(y[i] - y[j]) * np.sign(p[i] - p[j]) for i, j in pairs)
    untied_y, untied_p = (sum(v[i] != v[j] for i, j in pairs) for v in (y, p))
    if not untied_y:
        return nan
    return float(agree / sqrt(untied_y * untied_p)) if untied_p else 0.0


@given(scores)
def test_tau_is_concordant_less_discordant_pairs(yp: tuple[list[int], list[int]]) -> None:
    assert kendall_tau(*yp) == pytest.approx(counted_tau(*yp), nan_ok=True)


@given(scores)
def test_tau_sees_order_alone(yp: tuple[list[int], list[int]]) -> None:
    y, p = map(np.array, yp)
    assert kendall_tau(y, np.exp(p)) == pytest.approx(kendall_tau(y, p), nan_ok=True)
    assert kendall_tau(y, -p) == pytest.approx(-kendall_tau(y, p), nan_ok=True)
    assert isnan(kendall_tau(y, y)) or kendall_tau(y, y) == pytest.approx(1)


@given(scores, st.data())
def test_of_tied_predictions_the_worst_rows_are_taken(
    yp: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    y, p = map(np.array, yp)
    k = data.draw(st.integers(1, len(y)))
    chosen = sorted(range(len(y)), key=lambda i: (-p[i], y[i]))[:k]
    kth = sorted(y)[-k]
    assert precision_at_k(y, p, k) == pytest.approx(sum(y[i] >= kth for i in chosen) / k)
    assert regret(y, p, k) == max(y) - max(y[i] for i in chosen)


@given(scores, st.data(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    yp: tuple[list[int], list[int]], data: st.DataObject, rnd
) -> None:
    y, p = map(np.array, yp)
    k = data.draw(st.integers(1, len(y)))
    order = list(range(len(y)))
    rnd.shuffle(order)
    for metric in (precision_at_k, regret):
        assert metric(y[order], p[order], k) == metric(y, p, k)
    assert kendall_tau(y[order], p[order]) == pytest.approx(kendall_tau(y, p), nan_ok=True)


@given(scores)
def test_exact_predictions_are_without_fault(yp: tuple[list[int], list[int]]) -> None:
    y, p = map(np.array, yp)
    for k in range(1, len(y) + 1):
        assert precision_at_k(y, y, k) == 1
        assert regret(y, y, k) == 0
        assert regret(y, p, k) >= 0
    regrets = [regret(y, p, k) for k in range(1, len(y) + 1)]
    assert regrets == sorted(regrets, reverse=True) and regrets[-1] == 0


@given(scores)
def test_r2_is_sklearns(yp: tuple[list[int], list[int]]) -> None:
    y, p = yp
    if len(set(y)) == 1:
        assert isnan(r2(y, p))
    else:
        assert r2(y, p) == pytest.approx(r2_score(y, p))


def test_a_constant_prediction_scores_nothing() -> None:
    y = np.arange(10.0)
    assert kendall_tau(y, np.zeros(10)) == 0
    assert precision_at_k(y, np.zeros(10), 3) == 0
    assert regret(y, np.zeros(10)) == 9


def test_tau_in_band_is_tau_of_the_rows_in_it() -> None:
    rng = np.random.default_rng(0)
    y, p, cost = rng.normal(size=(3, 200))
    cost = 100 + 10 * cost
    near = (cost >= 95) & (cost <= 105)
    assert near.sum() > 20
    assert kendall_tau_in_band(y, p, cost, 100, 0.05) == kendall_tau(y[near], p[near])
    # Beyond the band nothing counts.
    assert kendall_tau_in_band(y, np.where(near, p, -y), cost, 100) == kendall_tau(y[near], p[near])


def test_a_band_of_four_rows_has_no_tau() -> None:
    y = np.arange(6.0)
    cost = np.array([100, 101, 99, 100, 200, 300])
    assert isnan(kendall_tau_in_band(y, y, cost, 100))
    assert kendall_tau_in_band(y, y, cost, 100, width=1.0) == pytest.approx(1)


@given(
    st.lists(st.floats(1, 1000), min_size=1, max_size=40),
    st.floats(1, 1000),
    st.floats(0, 1),
    st.integers(1, 50),
)
def test_the_band_widens_just_enough(cost: list[float], centre: float, width: float, rows: int) -> None:
    wide = widened(cost, centre, width, rows)
    assert wide >= width
    held = int(in_band(cost, centre, wide).sum())
    assert held >= min(rows, len(cost))
    if wide > width:
        assert int(in_band(cost, centre, np.nextafter(wide, 0)).sum()) < min(rows, len(cost))


def test_errors_are_sentences_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"one length, got \(3,\) and \(2,\)"):
        kendall_tau([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="0 scores and 1 predictions of 2 are not finite"):
        r2([1, 2], [1, nan])
    with pytest.raises(ValueError, match="between 1 and the 2 rows, got 3"):
        precision_at_k([1, 2], [1, 2], 3)
    with pytest.raises(ValueError, match="positive cost, got 0"):
        kendall_tau_in_band([1, 2], [1, 2], [1, 2], 0)
    with pytest.raises(ValueError, match="3 costs for 2 scores"):
        kendall_tau_in_band([1, 2], [1, 2], [1, 2, 3], 1)
