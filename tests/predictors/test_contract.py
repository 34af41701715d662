"""Every predictor keeps the sixteen promises, and a predictor that forgets one is caught by its check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from predictors import EXPECTED_FAILURES, PREDICTORS, make_predictor
from predictors.contract import CHECKS, check_predictor
from predictors.protocol import Features, Scores


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promise(check: str, name: str) -> None:
    if check in EXPECTED_FAILURES.get(name, {}):
        pytest.xfail(EXPECTED_FAILURES[name][check])
    CHECKS[check](lambda: make_predictor(name))


def test_expected_failures_name_predictors_and_checks() -> None:
    assert set(EXPECTED_FAILURES) <= set(PREDICTORS)
    assert {check for reasons in EXPECTED_FAILURES.values() for check in reasons} <= set(CHECKS)


class Honest:
    """Ridge with a fixed penalty: keeps all promises, so that one planted fault is the only one."""

    def __init__(self) -> None:
        self.weights: Scores | None = None

    def fit(self, X: Features, y: Scores) -> Self:
        X, y = np.asarray(X, dtype=float), np.asarray(y, dtype=float)
        if X.ndim != 2 or len(X) != len(y) or not np.isfinite(y).all():
            raise ValueError(f"X must be 2-d and y finite and as long, got {X.shape} and {y.shape}")
        self.mean, self.shift = X.mean(axis=0), y.mean()
        self.scale = np.where(X.std(axis=0) > 1e-6, X.std(axis=0), np.inf)
        Z = (X - self.mean) / self.scale
        self.weights = np.linalg.solve(Z.T @ Z + np.eye(Z.shape[1]), Z.T @ (y - self.shift))
        return self

    def predict(self, X: Features) -> Scores:
        if self.weights is None:
            raise ValueError("call fit first")
        if X.shape[1] != len(self.weights):
            raise ValueError(f"{X.shape[1]} columns, {len(self.weights)} were learned from")
        scores: Scores = (X - self.mean) / self.scale @ self.weights + self.shift
        return scores


class ReturnsTrainingError(Honest):
    def fit(self, X: Features, y: Scores) -> Any:
        return float(np.mean((super().fit(X, y).predict(X) - y) ** 2))


class ColumnVector(Honest):
    def predict(self, X: Features) -> Scores:
        return super().predict(X)[:, None]


class ZerosBeforeFit(Honest):
    def predict(self, X: Features) -> Scores:
        return np.zeros(len(X)) if self.weights is None else super().predict(X)


class CentresInPlace(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        offset = X.mean(axis=0)
        X -= offset
        super().fit(X, y)
        self.mean = self.mean + offset
        return self


class Seedless(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        return super().fit(X, y + 0.01 * y.std() * np.random.default_rng().standard_normal(len(y)))


class DrawsGlobally(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        order = np.random.permutation(len(y)) if np.ndim(X) == 2 and len(X) == len(y) else slice(None)
        return super().fit(X[order], y[order])


class Squeezes(Honest):
    def predict(self, X: Features) -> Scores:
        return np.squeeze(super().predict(X))


class StandardisesTheBatch(Honest):
    def predict(self, X: Features) -> Scores:
        scores = super().predict(X)
        return scores if len(X) < 2 else scores - scores.mean() + self.shift


class WarmStarts(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        before = self.weights
        super().fit(X, y)
        if before is not None:
            self.weights = 0.9 * self.weights + 0.1 * before
        return self


class NeverMapsBack(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        return super().fit(X, (y - np.mean(y)) / (np.std(y) or 1.0))


class PredictsRanks(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        return super().fit(X, np.where(np.isfinite(y), np.argsort(np.argsort(y)), np.nan))


class DividesByNoDeviation(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        with np.errstate(all="ignore"):
            self.unit = np.std(y)
            return super().fit(X, np.nan_to_num((y - np.mean(y)) / self.unit) if self.unit == 0 else y)

    def predict(self, X: Features) -> Scores:
        return super().predict(X) + (np.nan if self.weights is not None and self.unit == 0 else 0.0)


class NeedsFiveFolds(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        if len(y) < 5:
            raise ValueError(f"5 folds take 5 pairs, got {len(y)}")
        return super().fit(X, y)


class DividesByDeadColumns(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        super().fit(X, y)
        self.scale = X.std(axis=0)
        return self

    def predict(self, X: Features) -> Scores:
        with np.errstate(all="ignore"):
            return super().predict(X)


class FlipsTheSign(Honest):
    def predict(self, X: Features) -> Scores:
        return 2 * self.shift - super().predict(X) if self.weights is not None else super().predict(X)


class TwentyToALeaf(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        super().fit(X, y)
        if len(y) < 80:
            self.weights = np.zeros(X.shape[1])
        return self


class HidesNan(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        return super().fit(X, np.where(np.isnan(y), np.nanmean(y), y))


class FitsAnyWidth(Honest):
    def predict(self, X: Features) -> Scores:
        if self.weights is None:
            return super().predict(X)
        return super().predict(np.resize(X, (len(X), len(self.weights))))


class KeepsALambda(Honest):
    def fit(self, X: Features, y: Scores) -> Self:
        self.link = lambda scores: scores
        return super().fit(X, y)


FAULTS: list[tuple[Callable[[], Any], str, str]] = [
    (ReturnsTrainingError, "fit_returns_self", "return self"),
    (ColumnVector, "predict_shape", r"\(7, 1\)"),
    (ZerosBeforeFit, "unfitted_raises", "went through"),
    (CentresInPlace, "inputs_untouched", "X of fit was changed"),
    (Seedless, "deterministic", "disagree"),
    (DrawsGlobally, "deterministic", "global random numbers"),
    (Squeezes, "rows_independent", "squeeze"),
    (StandardisesTheBatch, "rows_independent", "one by one"),
    (WarmStarts, "refit_forgets", "anew in fit"),
    (NeverMapsBack, "units", "units of y"),
    (PredictsRanks, "units", "units of y|standardise y"),
    (DividesByNoDeviation, "constant_target", "deviation of 0"),
    (NeedsFiveFolds, "few_pairs", "2 pairs raised ValueError"),
    (DividesByDeadColumns, "dead_columns", "constant columns"),
    (FlipsTheSign, "learns_order", "mind the sign"),
    (TwentyToALeaf, "learns_from_few", "20 samples a leaf"),
    (HidesNan, "bad_input_raises", "NaN score went through"),
    (FitsAnyWidth, "wrong_width_raises", "11 of 12 columns went through"),
    (KeepsALambda, "pickles", "no lambdas"),
]


def test_the_honest_predictor_keeps_them_all() -> None:
    check_predictor(Honest)


def test_a_stock_regressor_is_a_predictor() -> None:
    check_predictor(lambda: RandomForestRegressor(n_estimators=50, random_state=0))


@pytest.mark.parametrize(("make", "check", "words"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_caught_by_the_check_named_for_it(
    make: Callable[[], Any], check: str, words: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        CHECKS[check](make)


def test_every_check_has_a_planted_fault() -> None:
    assert len(CHECKS) == 16
    assert {check for _, check, _ in FAULTS} == set(CHECKS)


def test_check_predictor_tells_all_that_is_broken() -> None:
    class Broken(FlipsTheSign, HidesNan):
        pass

    with pytest.raises(AssertionError) as caught:
        check_predictor(Broken)
    lines = str(caught.value).splitlines()
    named = [line.partition(":")[0] for line in lines[1:]]
    assert {"learns_order", "learns_from_few", "bad_input_raises"} <= set(named) <= set(CHECKS)
    assert lines[0] == f"{len(named)} of 16 promises broken:"
    check_predictor(Broken, expected_failures=named)


def test_the_list_of_expected_failures_stays_true() -> None:
    with pytest.raises(AssertionError, match="units: expected to fail, but holds"):
        check_predictor(Honest, expected_failures=["units"])
    with pytest.raises(ValueError, match="no check is called unitz: choose from fit_returns_self"):
        check_predictor(Honest, expected_failures=["unitz"])


def test_the_checks_leave_the_global_random_numbers_alone() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    check_predictor(Honest)
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])


@pytest.mark.slow
def test_the_example_in_the_readme_keeps_the_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    lines = text[text.index("from sklearn.ensemble") :].partition("```")[0].splitlines()
    (tmp_path / "readme_example.py").write_text("\n".join(line.removeprefix("   ") for line in lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    check_predictor(lambda: make_predictor("readme_example:Mine"))
