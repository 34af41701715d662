"""Predict on the scale of damage: what a subnet loses against its parent, under a square root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from predictors.protocol import Features, Predictor, Scores


@dataclass
class DamagePredictor:
    """A predictor of scores that learns -sqrt(reference - score) and answers in scores again.

    Scores of bad subnets spread over a range many times that of the good ones; without the root the fit
    spends itself on them and extrapolates far beyond the reference, which is the parent's score. Order is
    kept. Scores above the reference count as negative damage.
    """

    predictor: Predictor
    reference: float

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from features X (n, d) and scores y (n,)."""
        self.predictor.fit(X, -_signed_root(self.reference - np.asarray(y, dtype=np.float64)))
        return self

    def predict(self, X: Features) -> Scores:
        """(n,) scores."""
        root = -np.asarray(self.predictor.predict(X), dtype=np.float64)
        result: Scores = self.reference - np.sign(root) * root**2
        return result


def _signed_root(damage: Scores) -> Scores:
    result: Scores = np.sign(damage) * np.sqrt(np.abs(damage))
    return result
