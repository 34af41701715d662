"""Search with a predictor: Optuna proposes generations, the predictor scores them, the budget is hard."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from data.errors import InputError
from nas.cost import Budget
from nas.generations import Found, asking, best_first
from nas.proposals import Indices, apart, fit, mutate
from nas.shape import Widths
from nas.space import SearchSpace

Predict = Callable[[Widths], NDArray[np.float64]]
"""(n, blocks, 3) widths -> (n,) scores, larger is better."""


def _cmaes(generation: int, seed: int) -> BaseSampler:
    if importlib.util.find_spec("cmaes") is None:  # Optuna would miss it in the middle of a search
        raise InputError("CMA-ES needs a library: .venv/bin/python -m pip install -e '.[search]'")
    return CmaEsSampler(seed=seed, popsize=generation)


SEARCHERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "nsga2": lambda generation, seed: NSGAIISampler(population_size=generation, seed=seed),
    "tpe": lambda generation, seed: TPESampler(seed=seed, n_startup_trials=generation),
    "cmaes": _cmaes,
    "gp": lambda generation, seed: GPSampler(seed=seed, n_startup_trials=generation),
    "random": lambda generation, seed: RandomSampler(seed=seed),
}
"""Optuna samplers by name, made from the size of a generation and a seed."""


def search(
    space: SearchSpace,
    budget: Budget,
    predict: Predict,
    *,
    starts: Indices,
    seed: int,
    trials: int = 400,
    generation: int = 40,
    neighbours: int = 8,
    climbs: int = 2,
    searcher: str = "nsga2",
    seconds: float = math.inf,
) -> Found:
    """Optuna asks for a generation, which is fitted to the budget and improved by a few vectorised climbs
    (every row against `neighbours` mutations of it, all fitted to the budget, one predictor call a climb);
    the improved scores are told to Optuna.

    `starts` are the first trials. Everything returned fits the budget. The search ends after so many trials
    or so many seconds, with one trial at least.
    """
    ends = perf_counter() + seconds
    rng = np.random.default_rng(seed)
    sampler = SEARCHERS[searcher](generation, seed)
    study, ask = asking(space, ["maximize"], sampler, starts[:trials])
    seen: list[tuple[Indices, NDArray[np.float64]]] = []
    best: list[float] = []
    told = 0
    while told < trials and (perf_counter() < ends or not told):
        asked, rows = ask(generation, ends)
        size = len(asked)
        rows = fit(space, budget, rows, rng)
        scores = predict(space.widths(rows))
        seen.append((rows, scores))
        for _ in range(climbs):
            near = fit(space, budget, mutate(space, np.repeat(rows, neighbours, axis=0), rng), rng)
            near_scores = predict(space.widths(near))
            seen.append((near, near_scores))
            winner = near_scores.reshape(size, neighbours).argmax(1) + np.arange(size) * neighbours
            better = near_scores[winner] > scores
            # A new array: `seen` holds the rows as they were scored.
            rows = np.where(better[:, None], near[winner], rows)
            scores = np.maximum(scores, near_scores[winner])
        for trial, score in zip(asked, scores, strict=True):
            study.tell(trial, float(score))
        told += size
        best.append(max(float(scores.max()), best[-1] if best else -np.inf))
    return best_first(space, seen, tuple(best))


def spread_out(space: SearchSpace, found: Found, count: int, taken: set[bytes], distance: int = 2) -> Indices:
    """The best `count` rows that differ from each other in at least `distance` knobs and are not `taken`
    (widths as bytes)."""
    new = [widths.tobytes() not in taken for widths in space.widths(found.indices)]
    rows = found.indices[np.array(new, dtype=bool)]
    return rows[apart(rows, count, distance)]
