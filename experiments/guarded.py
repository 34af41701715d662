"""A predictor that says who it is when it fails: what others wrote is used in the middle of long work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from data.errors import InputError, first_line
from predictors.protocol import Features, Predictor, Scores


@dataclass
class Guarded:
    """Passes tables to a predictor and its answers back; `InputError` for what no search can go on from."""

    name: str
    predictor: Predictor

    def fit(self, X: Features, y: Scores) -> Self:
        """Learn from X (n, d) and y (n,)."""
        try:
            self.predictor.fit(X, y)
        except Exception as error:  # whatever somebody's code raises
            raise self._wrong(f"failed to learn from {len(y)} pairs", error) from error
        return self

    def predict(self, X: Features) -> Scores:
        """Finite scores (m,) for X (m, d)."""
        try:
            found = np.asarray(self.predictor.predict(X), dtype=np.float64)
        except Exception as error:
            raise self._wrong(f"failed to predict {len(X)} rows", error) from error
        if found.shape != (len(X),):
            raise self._wrong(f"gave predictions of shape {found.shape} for {len(X)} rows")
        if not np.isfinite(found).all():
            raise self._wrong(
                f"gave {int((~np.isfinite(found)).sum())} of {len(X)} predictions that are not finite"
            )
        return found

    def _wrong(self, what: str, error: Any = None) -> InputError:
        said = f" ({type(error).__name__}: {first_line(error)})" if error is not None else ""
        return InputError(
            f"predictor {self.name!r} {what}{said}; predictors.contract.check_predictor tells what it breaks"
        )
