"""Predict damage, what a subnet loses: an additive line in local errors times a learned correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import nnls
from sklearn.dummy import DummyRegressor

from predictors.protocol import Features, Predictor, Scores

LEAST = 1e-4
"""Damage in nats below which subnets count as equal to their parent: logarithms need a floor."""


@dataclass
class DamagePredictor:
    """A predictor of scores that works on the damage, reference - score, where `reference` is the parent's.

    The damage is taken as an additive line times a correction. The line is a non-negative combination of the
    columns `errors` (local output errors) and their squares: cutting more never looks better, so it
    extrapolates from few pairs, which a free regression does not. The given predictor learns the logarithm
    of what the line misses, from all columns and the line itself. Everything is in relative damage, because
    scores of bad subnets spread over a range many times that of the good ones.
    """

    predictor: Predictor
    reference: float
    errors: Sequence[int]

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from features X (n, d) and scores y (n,)."""
        damage = np.maximum(self.reference - np.asarray(y, dtype=np.float64), LEAST)
        self.weights_ = additive_line(self._terms(X), damage)
        line = self._line(X)
        self.predictor.fit(self._with_line(X, line), np.log(line) - np.log(damage))
        return self

    def predict(self, X: Features) -> Scores:
        """(n,) scores."""
        line = self._line(X)
        result: Scores = self.reference - line * np.exp(-self.predictor.predict(self._with_line(X, line)))
        return result

    def _terms(self, X: Features) -> Features:
        errors = np.asarray(X, dtype=np.float64)[:, list(self.errors)]
        return np.concatenate([errors, errors**2], axis=1)

    def _line(self, X: Features) -> Scores:
        line: Scores = np.maximum(self._terms(X) @ self.weights_, LEAST)
        return line

    @staticmethod
    def _with_line(X: Features, line: Scores) -> Features:
        return np.concatenate([np.asarray(X, dtype=np.float64), np.log(line)[:, None]], axis=1)


def no_correction() -> Predictor:
    """A predictor that adds nothing to the additive line of `DamagePredictor`."""
    return DummyRegressor(strategy="constant", constant=0.0)


def additive_line(terms: Features, damage: Scores, pull: float = 1e-3) -> Scores:
    """Non-negative weights (d,) with terms (n, d) @ weights close to damage (n,) > 0 in relative error.

    Weighted non-negative least squares (Lawson and Hanson 1974) with a weak ridge towards one common weight,
    so that terms that few rows exercise are not taken for free.
    """
    rows, columns = terms.shape
    common = float(np.median(damage / np.maximum(terms.sum(axis=1), 1e-12)))
    strength = np.sqrt(pull * rows)
    # A subnet that happens to score like its parent must not outweigh all others.
    weight = 1.0 / np.maximum(damage, 0.1 * np.median(damage))
    system = np.concatenate([terms * weight[:, None], strength * np.eye(columns) / max(common, 1e-12)])
    wanted = np.concatenate([damage * weight, strength * np.ones(columns)])
    weights: Scores = nnls(system, wanted)[0]
    return weights
