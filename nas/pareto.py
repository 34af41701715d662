"""Predicted score against one cost, both at once: Optuna's NSGA-II over a whole range of budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import NSGAIISampler

from nas.cost import CostModel
from nas.generations import Found, asking, best_first
from nas.proposals import Indices, keep_attention, mutate
from nas.search import Predict
from nas.space import SearchSpace


def pareto_search(
    space: SearchSpace,
    cost: CostModel,
    name: str,
    predict: Predict,
    *,
    starts: Indices,
    seed: int,
    trials: int = 2000,
    generation: int = 50,
    neighbours: int = 16,
    seconds: float = math.inf,
) -> tuple[Found, NDArray[np.float64]]:
    """Everything that was scored, best first, and what each costs (n,).

    Optuna asks for a generation; each row is replaced by the mutation of it that is predicted better without
    costing more, if there is one, and told with its two values. `starts` are the first trials, spread over
    the costs that are of interest.
    """
    rng, ends = np.random.default_rng(seed), perf_counter() + seconds
    sampler = NSGAIISampler(population_size=generation, seed=seed)
    study, ask = asking(space, ["maximize", "minimize"], sampler, starts[:trials])

    def costs_of(rows: Indices) -> NDArray[np.float64]:
        return np.asarray(cost.of_widths(space.widths(rows), [name])[name], dtype=np.float64)

    seen: list[tuple[Indices, NDArray[np.float64]]] = []
    told = 0
    while told < trials and (perf_counter() < ends or not told):
        asked, rows = ask(generation, ends)
        size = len(asked)
        rows = keep_attention(space, rows)
        near = np.concatenate([rows, mutate(space, np.repeat(rows, neighbours, axis=0), rng)])
        scores, costs = predict(space.widths(near)), costs_of(near)
        seen.append((near, scores))
        owner = np.repeat(np.arange(size), neighbours)
        cheap = costs[size:] <= costs[owner]
        gain = np.where(cheap, scores[size:], -np.inf).reshape(size, neighbours)
        winner = size + gain.argmax(1) + np.arange(size) * neighbours
        best = np.where(gain.max(1) > scores[:size], winner, np.arange(size))
        for trial, number in zip(asked, best, strict=True):
            study.tell(trial, [float(scores[number]), float(costs[number])])
        told += size
    found = best_first(space, seen, (max(float(scores.max()) for _, scores in seen),))
    return found, costs_of(found.indices)


def best_within(found: Found, costs: NDArray[np.float64], limits: Sequence[float]) -> list[int | None]:
    """For each limit the row of the best score that costs no more, None where there is none."""
    within = [np.flatnonzero(costs <= limit) for limit in limits]
    return [int(rows[0]) if len(rows) else None for rows in within]  # best first
