"""A predictor that has rows of its own to learn from, beside those that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from predictors.protocol import Features, Predictor, Scores


@dataclass
class AlsoFrom:
    """A predictor that learns from these rows too, features (n, d) and scores (n,), whatever it is given."""

    predictor: Predictor
    features: Features
    scores: Scores

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), and from the rows that are always there."""
        self.predictor.fit(np.concatenate([X, self.features]), np.concatenate([y, self.scores]))
        return self

    def predict(self, X: Features) -> Scores:
        """(n,) scores."""
        return self.predictor.predict(X)
