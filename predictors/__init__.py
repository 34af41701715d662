"""Regression on tables: scores learned from rows of numbers, and how far to trust what was learned.

Adding a predictor: write one module with a class that has `fit` and `predict`, add one line to `PREDICTORS`,
and run `pytest tests/predictors -k NAME`. Nothing here knows what the rows describe.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from predictors.protocol import Features, Make, Predictor, Scores, UncertainPredictor

__all__ = [
    "EXPECTED_FAILURES",
    "PREDICTORS",
    "Features",
    "Lazy",
    "Make",
    "Predictor",
    "Scores",
    "UncertainPredictor",
    "make_predictor",
]


@dataclass(frozen=True)
class Lazy:
    """A class by its import path "package.module:Class", imported when it is first called."""

    path: str

    def load(self) -> Callable[..., Predictor]:
        """The class itself; ValueError when the path leads nowhere."""
        module_name, _, name = self.path.partition(":")
        try:
            module = importlib.import_module(module_name)
        except (ImportError, TypeError, ValueError) as error:  # the last two: "", ".relative", "a..b"
            raise ValueError(f"predictor {self.path!r} cannot be imported: {error}") from error
        found = getattr(module, name, None)
        if not callable(found):
            near = _near(name, [other for other, value in vars(module).items() if callable(value)])
            raise ValueError(f"module {module_name!r} has no class {name!r}{near}")
        return found

    def __call__(self, **settings: Any) -> Predictor:
        return self.load()(**settings)


# Any callable that builds a predictor from keywords will do: a class as well as a path to one.
PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "xgboost": Lazy("predictors.gbdt:BoostedTrees"),
    "ridge": Lazy("predictors.ridge:StandardisedRidge"),
}

# Promises that a predictor breaks on purpose: name -> {check: the reason}. None does so far.
EXPECTED_FAILURES: dict[str, dict[str, str]] = {}


def make_predictor(name: str, seed: int = 0) -> Predictor:
    """A fresh predictor by its name in `PREDICTORS`, or by the import path "package.module:Class" of one.

    The seed is handed over as `seed` or `random_state` where the constructor has such an argument. Raises
    ValueError when there is no such name or path, or when what is there lacks `fit` or `predict`.
    """
    if name in PREDICTORS:
        build = PREDICTORS[name]
    elif ":" in name:
        build = Lazy(name)
    else:
        raise ValueError(
            f"no predictor is called {name!r}{_near(name, list(PREDICTORS))}: choose from "
            f'{", ".join(sorted(PREDICTORS))}, or give an import path such as "package.module:Class"'
        )
    if isinstance(build, Lazy):
        build = build.load()
    try:
        accepted = set(inspect.signature(build).parameters)
    except ValueError:  # some classes written in C tell no signature
        accepted = set()
    try:
        predictor = build(**dict.fromkeys(accepted & {"seed", "random_state"}, seed))
    except TypeError as error:
        raise ValueError(f"{name!r} cannot be built from a seed alone: {error}") from error
    missing = [method for method in ("fit", "predict") if not callable(getattr(predictor, method, None))]
    if missing:
        raise ValueError(f"{name!r} is no predictor: it has no method {' and no '.join(missing)}")
    return predictor


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names)
    return f" (near: {', '.join(close)})" if close else ""
