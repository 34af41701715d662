"""Honest baselines at the same budget: uniform cuts, dropped layers, random search, search unpredicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.building import Measure, build_pairs, table
from nas.cost import Budget
from nas.pairs import Pair, Pairs
from nas.proposals import Indices, fit, mutate
from nas.sampling import Hints, drop_blocks, uniform_family
from nas.space import SearchSpace


def uniform_cuts(space: SearchSpace, budget: Budget) -> Indices:
    """Uniform architectures that reach the budget with different shares of heads and channels: (n, knobs),
    the same widths in every block, each the largest of its kind. The best by score is the baseline."""
    shape = space.shape
    rows = [*uniform_family(space, budget)]

    def row(groups: int, ffn: int) -> Indices:
        """Blocks have the same choices, but for skips that an engine does not allow in some."""
        widths = np.tile([groups, shape.queries_per_group, ffn], (1, shape.blocks, 1))
        return space.indices(widths)[0]

    for groups in space.choices[0]:
        if not groups:
            continue
        channels = space.choices[2]
        low, high = 0, len(channels) - 1
        while low < high:  # the widest FFN that fits beside this many heads
            middle = (low + high + 1) // 2
            fits = budget.allows(space.widths(row(groups, channels[middle])[None]))[0]
            low, high = (middle, high) if fits else (low, middle - 1)
        widest = row(groups, channels[low])
        if low and budget.allows(space.widths(widest[None]))[0]:
            rows.append(widest)
    unique = np.unique(np.stack(rows), axis=0)
    widths = space.widths(unique)
    usable = (widths[..., 0] > 0).all(1) & (widths[..., 2] > 0).all(1) & budget.allows(widths)
    return unique[usable]


def dropped_layers(space: SearchSpace, budget: Budget, hints: Hints) -> Indices:
    """Whole blocks dropped by block influence, least first (ShortGPT), until the budget is met; the others
    stay whole: (1, knobs). One block at least stays, cut to the budget if even that is too much."""
    order = np.argsort(hints.influence, kind="stable")
    whole = [all(0 in space.choices[3 * block + part] for part in (0, 2)) for block in order]
    order = order[whole]  # an engine may need attention in some block
    for dropped in range(min(len(order) + 1, space.shape.blocks)):
        row = (space.depths - 1).copy().reshape(-1, 3)
        row[order[:dropped]] = 0
        if budget.allows(space.widths(row.reshape(1, -1)))[0]:
            return row.reshape(1, -1)
    return np.stack(drop_blocks(space, budget, hints.influence)[-1:])


def random_cuts(space: SearchSpace, budget: Budget, count: int, rng: np.random.Generator) -> Indices:
    """Random search: every knob uniform over its choices, fitted to the budget and filled up to it."""
    return fit(space, budget, rng.integers(0, space.depths, size=(count, len(space.depths))), rng)


def evolve(
    space: SearchSpace,
    budget: Budget,
    measure: Measure,
    pairs: Pairs,
    first: Indices,
    *,
    total: int,
    rounds: int,
    seed: int,
    parents: int = 12,
    quiet: bool = False,
) -> list[Pair]:
    """Search without a predictor: the `first` architectures, then in every round mutations of the best
    `parents` so far, fitted to the budget, until `total` are measured. Needs no more than they do."""
    known = build_pairs(pairs, measure, space.shape, budget, space.widths(first), "evolution", quiet=quiet)
    for number in range(1, rounds + 1):
        count = (total - len(known)) // (rounds - number + 1)
        rng = np.random.default_rng([seed, number])
        widths, scores = table(known, space.shape)
        best = space.indices(widths[np.argsort(-scores, kind="stable")[:parents]])
        taken = {row.tobytes() for row in widths}
        fresh: list[NDArray[np.int64]] = []
        for _ in range(50):  # tries, where hardly anything else fits
            if len(fresh) >= count:
                break
            proposed = fit(space, budget, mutate(space, best[rng.integers(len(best), size=count)], rng), rng)
            for row in space.widths(proposed):
                if row.tobytes() not in taken and len(fresh) < count:
                    taken.add(row.tobytes())
                    fresh.append(row)
        if fresh:
            known += build_pairs(
                pairs, measure, space.shape, budget, np.stack(fresh), f"evolution {number}", quiet=quiet
            )
    return known
