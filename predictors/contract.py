"""The sixteen promises that every predictor keeps, as functions that run it.

In a notebook: `check_predictor(MyPredictor)`. In the tests: every check on every predictor. Each takes
`make`, which gives a fresh predictor at every call, and raises AssertionError with what to add when a promise
is broken. The tables are small, seeded, and made here; a whole run is about thirty fits of at most 200 rows.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Collection

import numpy as np
from scipy.stats import spearmanr

from predictors.protocol import Features, Make, Predictor, Scores

COLUMNS = 12


def check_fit_returns_self(make: Make) -> None:
    """Calls can be chained: `make().fit(X, y).predict(X)`."""
    X, y = _pairs(40)
    predictor = make()
    got = predictor.fit(X, y)
    assert got is predictor, f"fit returned {type(got).__name__}; end fit with `return self`"


def check_predict_shape(make: Make) -> None:
    """One finite float a row, in a vector."""
    got = _fitted(make).predict(_rows(7))
    assert isinstance(got, np.ndarray), f"predict returned {type(got).__name__}; return a numpy array"
    assert got.shape == (7,), f"predict returned shape {got.shape} for 7 rows; return (7,), e.g. by `[:, 0]`"
    assert got.dtype.kind == "f", f"predict returned dtype {got.dtype}; return floats"
    assert np.isfinite(got).all(), f"predict returned {got}; every prediction must be finite"


def check_unfitted_raises(make: Make) -> None:
    """Nothing is predicted from nothing."""
    said = _refusal(lambda: make().predict(_rows(3)), "predict before fit")
    assert "fit" in said.lower(), f"predict before fit said {said!r}; say that fit comes first"


def check_inputs_untouched(make: Make) -> None:
    """The caller's tables are as they were."""
    (X, y), Q = _pairs(40), _rows(5)
    before = X.copy(), y.copy(), Q.copy()
    make().fit(X, y).predict(Q)
    for name, now, then in zip(("X of fit", "y of fit", "X of predict"), (X, y, Q), before, strict=True):
        assert np.array_equal(now, then), f"{name} was changed; work on a copy, e.g. `X = X - mean`"


def check_deterministic(make: Make) -> None:
    """Equal seeds, equal answers, whatever the global random numbers, and those are left where they were."""
    saved = np.random.get_state(), random.getstate()
    try:
        answers = []
        for seed in (1, 2):
            np.random.seed(seed)
            random.seed(seed)
            before = _global_state()
            answers.append(_fitted(make).predict(_rows(20)))
            assert _global_state() == before, (
                "global random numbers were drawn; use np.random.default_rng(self.seed) in fit"
            )
    finally:
        np.random.set_state(saved[0])
        random.setstate(saved[1])
    assert _same(*answers), (
        "two fits on the same pairs disagree; take a seed and use it for all that is random"
    )


def check_rows_independent(make: Make) -> None:
    """A row's prediction does not depend on the rows beside it."""
    predictor, Q = _fitted(make), _rows(9)
    together = predictor.predict(Q)
    alone = [np.asarray(predictor.predict(Q[i : i + 1])) for i in range(len(Q))]
    assert all(one.shape == (1,) for one in alone), (
        f"one row gave shape {alone[0].shape}; return (1,), and do not squeeze predictions"
    )
    assert _same(together, np.concatenate(alone)), (
        "rows predicted one by one differ from the batch; learn statistics in fit, take none in predict"
    )


def check_refit_forgets(make: Make) -> None:
    """A second fit is a fresh start."""
    (X, y), (X2, y2), Q = _pairs(40), _pairs(30, seed=1), _rows(20)
    twice = make().fit(X, -y).fit(X2, y2).predict(Q)
    assert _same(twice, make().fit(X2, y2).predict(Q)), (
        "the first fit shows in the second; build the model, and its random numbers, anew in fit"
    )


def check_units(make: Make) -> None:
    """Answers are in the units of y: scaling and shifting the scores scales and shifts the predictions."""
    (X, y), Q = _pairs(100), _rows(50, seed=1)
    plain = make().fit(X, y).predict(Q)
    error = np.sqrt(np.mean((plain - _truth(Q)) ** 2))
    assert error < y.std(), (
        f"predictions miss by {error:.3g} where scores vary by {y.std():.3g}; map them back to the units of y"
    )
    for scale, shift in ((1.0, 100.0), (0.01, 3.0), (50.0, -20.0), (1000.0, 0.0)):
        got = make().fit(X, scale * y + shift).predict(Q)
        miss = np.sqrt(np.mean((got - (scale * plain + shift)) ** 2)) / (scale * plain.std())
        assert miss < 0.2, (
            f"with scores times {scale} plus {shift}, predictions are off by {miss:.2g} of their standard "
            "deviation; standardise y in fit and undo exactly that in predict"
        )


def check_constant_target(make: Make) -> None:
    """When all scores are equal, so are all predictions."""
    X, _ = _pairs(30)
    for constant in (3.25, -0.1, 0.0):
        got = make().fit(X, np.full(len(X), constant)).predict(_rows(10))
        assert np.allclose(got, constant, rtol=1e-3, atol=1e-3), (
            f"all scores were {constant}, predictions are {got[:3]}; do not divide by a deviation of 0"
        )


def check_few_pairs(make: Make) -> None:
    """2, 3 or 8 pairs are enough to answer something."""
    for rows in (2, 3, 8):
        try:
            got = make().fit(*_pairs(rows)).predict(_rows(5))
        except Exception as error:
            raise AssertionError(
                f"{rows} pairs raised {type(error).__name__}: {error}; fall back to something simpler"
            ) from error
        assert np.isfinite(got).all(), f"from {rows} pairs predictions are {got}; they must be finite"


def check_dead_columns(make: Make) -> None:
    """Columns that never vary do no harm."""
    (X, y), Q = _pairs(100), _rows(50, seed=1)

    def dead(rows: int) -> Features:
        return np.tile([0.0, 1.0, 0.1, 1e9], (rows, 1))

    got = make().fit(np.hstack([X, dead(len(X))]), y).predict(np.hstack([Q, dead(len(Q))]))
    assert np.isfinite(got).all(), (
        f"with constant columns predictions are {got[:3]}; do not divide by a deviation of 0"
    )
    order = _order(got, _truth(Q))
    assert order > 0.4, f"with constant columns the order is lost (Spearman {order:.2f}); leave them out"


def check_learns_order(make: Make) -> None:
    """200 pairs of a saturating additive truth are learned: Spearman above 0.8 on fresh rows."""
    Q = _rows(200, seed=1)
    order = _order(make().fit(*_pairs(200)).predict(Q), _truth(Q))
    assert order > 0.8, f"Spearman {order:.2f} from 200 pairs, 0.8 asked; larger is better: mind the sign"


def check_learns_from_few(make: Make) -> None:
    """40 pairs of the same truth are of use: Spearman above 0.4 on fresh rows, on average of three tables."""
    Q = _rows(200, seed=1)
    each = [_order(make().fit(*_pairs(40, seed=seed)).predict(Q), _truth(Q)) for seed in (2, 3, 4)]
    assert np.mean(each) > 0.4, (
        f"Spearman {np.mean(each):.2f} from 40 pairs, 0.4 asked; defaults made for thousands of rows, such "
        "as 20 samples a leaf, are too much for so few"
    )


def check_bad_input_raises(make: Make) -> None:
    """A table that cannot be learned from is refused with ValueError."""
    X, y = _pairs(40)
    holed = y.copy()
    holed[3] = np.nan
    _refusal(lambda: make().fit(X, holed), "fit with a NaN score")
    _refusal(lambda: make().fit(X, y[:-1]), "fit with 40 rows and 39 scores")
    _refusal(lambda: make().fit(X[:, 0], y), "fit with a 1-d table")


def check_wrong_width_raises(make: Make) -> None:
    """A row of another width than was learned from is refused with ValueError."""
    predictor, Q = _fitted(make), _rows(5)
    _refusal(lambda: predictor.predict(Q[:, :-1]), f"predict with {COLUMNS - 1} of {COLUMNS} columns")
    _refusal(lambda: predictor.predict(np.hstack([Q, Q[:, :1]])), f"predict with {COLUMNS + 1} columns")


def check_pickles(make: Make) -> None:
    """A fitted predictor can be stored and sent, and answers the same afterwards."""
    predictor, Q = _fitted(make), _rows(20)
    try:
        again = pickle.loads(pickle.dumps(predictor))
    except Exception as error:
        raise AssertionError(
            f"pickling raised {type(error).__name__}: {error}; keep no lambdas, open files or handles"
        ) from error
    assert _same(predictor.predict(Q), again.predict(Q)), "predictions differ after pickling; keep all state"


CHECKS: dict[str, Callable[[Make], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_fit_returns_self,
        check_predict_shape,
        check_unfitted_raises,
        check_inputs_untouched,
        check_deterministic,
        check_rows_independent,
        check_refit_forgets,
        check_units,
        check_constant_target,
        check_few_pairs,
        check_dead_columns,
        check_learns_order,
        check_learns_from_few,
        check_bad_input_raises,
        check_wrong_width_raises,
        check_pickles,
    )
}


def check_predictor(make: Make, expected_failures: Collection[str] = ()) -> None:
    """Run all sixteen checks; AssertionError lists every broken promise, one line each.

    `expected_failures` names checks, as in `CHECKS`, that fail by design; one that does not fail is an error
    too, so that the list stays true. ValueError when it names no check.
    """
    unknown = sorted(set(expected_failures) - set(CHECKS))
    if unknown:
        raise ValueError(f"no check is called {', '.join(unknown)}: choose from {', '.join(CHECKS)}")
    broken = []
    for name, check in CHECKS.items():
        try:
            check(make)
        except Exception as error:  # whatever it is, the other promises are to be told too
            if name not in expected_failures:
                said = str(error) if isinstance(error, AssertionError) else repr(error)
                broken.append(f"{name}: {said.partition(chr(10))[0]}")
        else:
            if name in expected_failures:
                broken.append(f"{name}: expected to fail, but holds; take it off the list")
    if broken:
        raise AssertionError(f"{len(broken)} of {len(CHECKS)} promises broken:\n" + "\n".join(broken))


def _rows(rows: int, seed: int = 0) -> Features:
    """Integers 1 to 8 in twelve columns, as the knobs of a search space have."""
    return np.random.default_rng([seed, rows]).integers(1, 9, (rows, COLUMNS)).astype(np.float64)


def _truth(X: Features) -> Scores:
    """Every column helps, the later ones more, each of them ever less the more it has."""
    weights = np.linspace(0.5, 2.0, COLUMNS)
    scores: Scores = (1.0 - np.exp(-3.0 * X / 8.0)) @ weights
    return scores


def _pairs(rows: int, seed: int = 0) -> tuple[Features, Scores]:
    """A table and its scores, measured with an error of a twentieth of their standard deviation."""
    X = _rows(rows, seed)
    exact = _truth(X)
    return X, exact + 0.05 * exact.std() * np.random.default_rng([seed, rows, 1]).standard_normal(rows)


def _fitted(make: Make) -> Predictor:
    predictor = make()
    predictor.fit(*_pairs(40))
    return predictor


def _order(predicted: Scores, exact: Scores) -> float:
    """Spearman's correlation; 0 for constant predictions."""
    return 0.0 if np.ptp(predicted) == 0 else float(spearmanr(predicted, exact).statistic)


def _same(a: Scores, b: Scores) -> bool:
    """Equal but for the last digits of single precision."""
    return np.allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.std(b)))


def _global_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return kind, np.asarray(keys).tobytes(), *rest, random.getstate()


def _refusal(call: Callable[[], object], what: str) -> str:
    """The message of the ValueError that the call must raise."""
    try:
        call()
    except ValueError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}; raise ValueError") from error
    raise AssertionError(f"{what} went through; raise ValueError, as sklearn's validate_data does")
