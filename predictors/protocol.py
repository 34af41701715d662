"""What a predictor is: two methods over a table, and a third for those that know their own uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Features: TypeAlias = NDArray[np.float64]  # (n, d): one row a pair, one column a knob or an aggregate
Scores: TypeAlias = NDArray[np.float64]  # (n,): larger is better


@runtime_checkable
class Predictor(Protocol):
    """A scikit-learn regressor, as far as this project looks: every one of them is a predictor.

    The sixteen promises that stand behind these two methods are the functions of `predictors.contract`.
    """

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,), forgetting what was learned before; ValueError on bad input."""
        ...

    def predict(self, X: Features) -> Scores:
        """Scores (m,) in the units of y for X (m, d), each row on its own; ValueError before `fit`."""
        ...


@runtime_checkable
class UncertainPredictor(Predictor, Protocol):
    """A predictor that also says how sure it is. Ask with `isinstance(p, UncertainPredictor)`."""

    def predict_with_std(self, X: Features) -> tuple[Scores, Scores]:
        """`predict(X)` (m,) and the standard deviation (m,) of a measured score about it."""
        ...


Make: TypeAlias = Callable[[], Predictor]  # gives a fresh, unfitted predictor at every call
