"""Generations of architectures out of an Optuna study: the study proposes choices, a search works on rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler

from nas.pairs import quiet_optuna
from nas.proposals import Indices
from nas.space import SearchSpace


@dataclass(frozen=True)
class Found:
    """What a search scored, best first, each architecture once: choice indices (n, knobs) and predicted
    scores (n,); `proposals` counts every prediction made, `best` is the best prediction after each
    generation."""

    indices: Indices
    predicted: NDArray[np.float64]
    proposals: int
    best: tuple[float, ...]


Ask = Callable[[int, float], tuple[list[optuna.Trial], Indices]]
"""(most, ends) -> at least one trial and at most so many, none begun after `ends` (`perf_counter`), and what
they propose, (n, knobs)."""


def asking(
    space: SearchSpace,
    directions: list[Literal["maximize", "minimize"]],
    sampler: BaseSampler,
    starts: Indices,
) -> tuple[optuna.Study, Ask]:
    """A study in memory over the knobs that have a choice, `starts` (n, knobs) first, and how to ask it."""
    free = [k for k, depth in enumerate(space.depths) if depth > 1]
    names = list(space.knobs)
    distributions: dict[str, Any] = {names[k]: IntDistribution(0, int(space.depths[k]) - 1) for k in free}
    with quiet_optuna():
        study = optuna.create_study(directions=directions, sampler=sampler)
    for row in starts:
        study.enqueue_trial({names[k]: int(row[k]) for k in free})

    def ask(most: int, ends: float = math.inf) -> tuple[list[optuna.Trial], Indices]:
        trials = [study.ask(distributions)]
        while len(trials) < most and perf_counter() < ends:
            trials.append(study.ask(distributions))
        rows = np.zeros((len(trials), len(names)), dtype=np.int64)
        chosen = [trial.params for trial in trials]  # once each: a copy of them all is made every time
        rows[:, free] = [[params[names[k]] for k in free] for params in chosen]
        return trials, rows

    return study, ask


def best_first(
    space: SearchSpace,
    seen: list[tuple[Indices, NDArray[np.float64]]],
    best: tuple[float, ...],
) -> Found:
    """All that was scored, in the order of its scores, each architecture once."""
    indices = np.concatenate([rows for rows, _ in seen])
    predicted = np.concatenate([scores for _, scores in seen])
    _, first = np.unique(space.widths(indices).reshape(len(indices), -1), axis=0, return_index=True)
    order = first[np.argsort(-predicted[first], kind="stable")]
    return Found(indices[order], predicted[order], len(indices), best)
