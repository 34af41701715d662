"""Samplers: which architectures to really evaluate before there is a predictor.

A sampler is a function `(space, budget, count, rng, hints) -> Indices`; everything it gives fits the budget.
Adding one is a function and one line in `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.cost import Budget
from nas.proposals import Indices, check_reachable, fit, keep_attention, mutate, smallest
from nas.space import SearchSpace


@dataclass(frozen=True)
class Hints:
    """What structured starts are made from: per block its influence (blocks,), larger is more important, and
    the output error of each choice, attention (blocks, G + 1, Q + 1) and MLP (blocks, P + 1)."""

    influence: NDArray[np.float64]
    attention_error: NDArray[np.float64]
    mlp_error: NDArray[np.float64]


Sampler = Callable[[SearchSpace, Budget, int, np.random.Generator, Hints], Indices]


def uniform(
    space: SearchSpace, budget: Budget, count: int, rng: np.random.Generator, hints: Hints
) -> Indices:
    """Every knob uniform over its choices, then fitted to the budget."""
    return fit(space, budget, rng.integers(0, space.depths, size=(count, len(space.depths))), rng, fill=False)


def stratified(
    space: SearchSpace, budget: Budget, count: int, rng: np.random.Generator, hints: Hints
) -> Indices:
    """Sizes spread evenly over the upper part of the budget, 75 to 100 % of every limit.

    Within a stratum each row has its own mean for heads and for channels, and its knobs scatter around them.
    """
    check_reachable(space, budget)
    rows = np.empty((count, len(space.depths)), dtype=np.int64)
    least = budget.cost.of_widths(space.widths(smallest(space))[0])
    for i, part in enumerate(rng.permutation(np.linspace(0.75, 1.0, count))):
        limits = {name: max(least[name].item(), limit * part) for name, limit in budget.limits.items()}
        centre = np.tile(rng.uniform(0.2, 1.0, size=3), space.shape.blocks)
        scatter = rng.normal(0.0, rng.uniform(0.05, 0.3), size=len(space.depths))
        row = np.rint((centre + scatter) * (space.depths - 1)).astype(np.int64)
        rows[i] = fit(space, Budget(budget.cost, limits), row[None], rng)[0]
    return rows


def seeded(space: SearchSpace, budget: Budget, count: int, rng: np.random.Generator, hints: Hints) -> Indices:
    """Structured starts (`starts`), then mutations of them, then a quarter stratified ones."""
    first = starts(space, budget, rng, hints)[:count]
    spread = stratified(space, budget, min(count - len(first), count // 4), rng, hints)
    rest = count - len(first) - len(spread)
    near = first[rng.integers(0, len(first), size=rest)]
    near = fit(space, budget, mutate(space, near, rng), rng)
    return np.concatenate([first, near, spread])


SAMPLERS: dict[str, Sampler] = {"seeded": seeded, "stratified": stratified, "uniform": uniform}


def starts(space: SearchSpace, budget: Budget, rng: np.random.Generator, hints: Hints) -> Indices:
    """Structured architectures at the budget: uniform with different shares of heads and channels, depth
    ramps, equal local damage everywhere, and the least influential blocks dropped; duplicates removed."""
    rows = [*uniform_family(space, budget), *_ramps(space, budget), *_equal_damage(space, budget, hints)]
    rows += drop_blocks(space, budget, hints.influence)
    fitted = fit(space, budget, np.stack(rows), rng)
    _, first = np.unique(fitted, axis=0, return_index=True)
    return fitted[np.sort(first)]


def uniform_family(
    space: SearchSpace, budget: Budget, ratios: tuple[float, ...] = (1.0, 0.75, 1.35, 0.5, 1.8)
) -> list[Indices]:
    """The largest uniform architectures within the budget, the same widths in every block, for several
    ratios of kept heads to kept channels; the first is the plain uniform one."""
    profiles = [np.tile([np.sqrt(r), 1.0, 1 / np.sqrt(r)], (space.shape.blocks, 1)) for r in ratios]
    return [_largest(space, budget, _scaled(profile)) for profile in profiles]


def _ramps(space: SearchSpace, budget: Budget) -> list[Indices]:
    """Widths that fall or rise linearly with depth, and ones that keep the ends wider than the middle."""
    depth = np.linspace(-1.0, 1.0, space.shape.blocks)
    shapes = [1 - 0.4 * depth, 1 + 0.4 * depth, 0.7 + 0.6 * depth**2, 1.2 - 0.4 * depth**2]
    return [_largest(space, budget, _scaled(shape[:, None] * np.ones(3))) for shape in shapes]


def _equal_damage(space: SearchSpace, budget: Budget, hints: Hints) -> list[Indices]:
    """Every module cut until its relative output error is the same, the largest that fits: the ranking's own
    profile."""
    attention = hints.attention_error[:, :, -1]  # all queries kept
    rows = []
    for exponent in (1.0, 0.5):

        def row(level: float, exponent: float = exponent) -> NDArray[np.float64]:
            tolerance = (1.0 - level) ** (1 / exponent)
            kept = np.ones((space.shape.blocks, 3))
            for block in range(space.shape.blocks):
                for column, errors in ((0, attention[block]), (2, hints.mlp_error[block])):
                    enough = np.flatnonzero(np.nan_to_num(errors, nan=np.inf) <= tolerance)
                    kept[block, column] = enough[0] / (len(errors) - 1) if len(enough) else 1.0
            return kept

        rows.append(_largest(space, budget, row))
    return rows


def drop_blocks(space: SearchSpace, budget: Budget, influence: NDArray[np.float64]) -> list[Indices]:
    """The least influential blocks dropped, one more in each row, the others uniformly filled to the budget,
    until the others are whole."""
    rows = []
    order = np.argsort(influence, kind="stable")
    for dropped in range(min(1, space.shape.blocks - 1), space.shape.blocks):
        alive = np.ones((space.shape.blocks, 1))
        alive[order[:dropped]] = 0.0
        row = _largest(space, budget, _scaled(alive * np.ones(3)))
        rows.append(row)
        if (row == (space.depths - 1) * np.repeat(alive[:, 0], 3)).all():
            break  # the rest is whole already: dropping more only wastes budget
    return rows


def _scaled(profile: NDArray[np.float64]) -> Callable[[float], NDArray[np.float64]]:
    """The profile times a level."""
    return lambda level: level * profile


def _largest(space: SearchSpace, budget: Budget, profile: Callable[[float], NDArray[np.float64]]) -> Indices:
    """The largest level in [0, 1] at which the profile (blocks, 3) of kept fractions fits, by bisection."""
    shape = space.shape
    whole = np.array([shape.kv_groups, shape.queries_per_group, shape.ffn])

    def at(level: float) -> Indices:
        kept = np.clip(profile(level), 0.0, 1.0)
        kept[:, 1] = np.where(kept[:, 0] > 0, 1.0, 0.0)
        row = space.indices(np.floor(kept * whole + 1e-9).astype(np.int64)[None])[0]
        # A part that the profile keeps is not rounded away altogether.
        row = np.where(kept.ravel() > 0, np.maximum(row, np.minimum(1, space.depths - 1)), row)
        return keep_attention(space, row[None])[0]

    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        fits = bool(budget.allows(space.widths(at(middle)[None]))[0])
        low, high = (middle, high) if fits else (low, middle)
    return at(high) if bool(budget.allows(space.widths(at(high)[None]))[0]) else at(low)
