"""Predicted score against one cost, both at once: Optuna's NSGA-II over a whole range of budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler

from nas.cost import CostModel
from nas.pairs import quiet_optuna
from nas.proposals import Indices, keep_attention, mutate
from nas.search import Found, Predict
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
    free = [k for k, depth in enumerate(space.depths) if depth > 1]
    names = list(space.knobs)
    distributions: dict[str, Any] = {names[k]: IntDistribution(0, int(space.depths[k]) - 1) for k in free}
    with quiet_optuna():
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=NSGAIISampler(population_size=generation, seed=seed)
        )
    for row in starts[:trials]:
        study.enqueue_trial({names[k]: int(row[k]) for k in free})

    def costs_of(rows: Indices) -> NDArray[np.float64]:
        return np.asarray(cost.of_widths(space.widths(rows), [name])[name], dtype=np.float64)

    seen: list[Indices] = []
    scored: list[NDArray[np.float64]] = []
    told = 0
    while told < trials and (perf_counter() < ends or not told):
        asked = [study.ask(distributions) for _ in range(generation)]
        rows = np.zeros((generation, len(names)), dtype=np.int64)
        chosen = [trial.params for trial in asked]  # once each: a copy of them all is made every time
        rows[:, free] = [[params[names[k]] for k in free] for params in chosen]
        rows = keep_attention(space, rows)
        near = np.concatenate([rows, mutate(space, np.repeat(rows, neighbours, axis=0), rng)])
        scores, costs = predict(space.widths(near)), costs_of(near)
        seen.append(near)
        scored.append(scores)
        owner = np.repeat(np.arange(generation), neighbours)
        cheap = costs[generation:] <= costs[owner]
        gain = np.where(cheap, scores[generation:], -np.inf).reshape(generation, neighbours)
        winner = generation + gain.argmax(1) + np.arange(generation) * neighbours
        best = np.where(gain.max(1) > scores[:generation], winner, np.arange(generation))
        for trial, number in zip(asked, best, strict=True):
            study.tell(trial, [float(scores[number]), float(costs[number])])
        told += generation
    indices, predicted = np.concatenate(seen), np.concatenate(scored)
    _, first = np.unique(space.widths(indices).reshape(len(indices), -1), axis=0, return_index=True)
    order = first[np.argsort(-predicted[first], kind="stable")]
    found = Found(indices[order], predicted[order], len(indices), (float(predicted.max()),))
    return found, costs_of(indices[order])


def best_within(found: Found, costs: NDArray[np.float64], limits: Sequence[float]) -> list[int | None]:
    """For each limit the row of the best score that costs no more, None where there is none."""
    within = [np.flatnonzero(costs <= limit) for limit in limits]
    return [int(rows[0]) if len(rows) else None for rows in within]  # best first
