"""Regression on tables: scores learned from rows of numbers, and how far to trust what was learned.

Adding a predictor: write one module with a class that has `fit` and `predict`, add one line to `PREDICTORS`,
and run `pytest tests/predictors -k NAME`. Nothing here knows what the rows describe.
"""

from __future__ import annotations

from collections.abc import Callable

from predictors.lazy import Lazy, build, near
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

# Any callable that builds a predictor from keywords will do: a class as well as a path to one.
PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "xgboost": Lazy("predictors.gbdt:BoostedTrees"),
    "xgboost_plain": Lazy("predictors.gbdt:BoostedTrees", bag=1, base_share=0.0),
    "xgboost_on_line": Lazy(
        "predictors.gbdt:BoostedTrees", bag=1, base=Lazy("predictors.ridge:StandardisedRidge"), base_share=1.0
    ),
    "xgboost_pairwise": Lazy("predictors.pairwise:PairwiseTrees"),
    "ridge": Lazy("predictors.ridge:StandardisedRidge"),
    "ridge_interactions": Lazy("predictors.interactions:RidgeInteractions"),
    "bagged_ridge_interactions": Lazy(
        "predictors.bagged:Bagged", make=Lazy("predictors.interactions:RidgeInteractions")
    ),
    "additive": Lazy("predictors.additive:Additive"),
    "kernel_ridge": Lazy("predictors.adapter:Standardised", make=Lazy("predictors.stock:kernel_ridge")),
    "svr": Lazy("predictors.adapter:Standardised", make=Lazy("predictors.stock:svr")),
    "gaussian_process": Lazy(
        "predictors.adapter:StandardisedWithStd", make=Lazy("predictors.stock:gaussian_process")
    ),
    "random_forest": Lazy("predictors.adapter:Standardised", make=Lazy("predictors.stock:random_forest")),
    "lightgbm": Lazy("predictors.adapter:Standardised", make=Lazy("predictors.lightgbm:small_leaves")),
}

# Promises that a predictor breaks on purpose: name -> {check: the reason}. None does so far.
EXPECTED_FAILURES: dict[str, dict[str, str]] = {}


def make_predictor(name: str, seed: int = 0) -> Predictor:
    """A fresh predictor by its name in `PREDICTORS`, or by the import path "package.module:Class" of one.

    The seed is handed over as `seed` or `random_state` where the constructor has such an argument. Raises
    ValueError when there is no such name or path, or when what is there lacks `fit` or `predict`.
    """
    if name not in PREDICTORS and ":" not in name:
        raise ValueError(
            f"no predictor is called {name!r}{near(name, PREDICTORS)}: choose from "
            f'{", ".join(sorted(PREDICTORS))}, or give an import path such as "package.module:Class"'
        )
    make = PREDICTORS.get(name, Lazy(name))
    try:
        predictor: Predictor = build(make, seed=seed, random_state=seed, n_jobs=1)
    except ValueError:
        raise
    except Exception as error:  # a constructor, or a module, of somebody's own
        raise ValueError(
            f"{name!r} cannot be built from a seed alone: {type(error).__name__}: {error}"
        ) from error
    missing = [method for method in ("fit", "predict") if not callable(getattr(predictor, method, None))]
    if missing:
        raise ValueError(f"{name!r} is no predictor: it has no method {' and no '.join(missing)}")
    return predictor
