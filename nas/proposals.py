"""Moves in a search space, many architectures at a time: fitting to a budget and mutation.

Architectures are rows of choice indices (n, knobs) here; see `SearchSpace.widths`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.cost import Budget
from nas.space import SearchSpace

Indices = NDArray[np.int64]


def check_reachable(space: SearchSpace, budget: Budget) -> None:
    """Raise `InputError` if not even the smallest usable architecture of the space fits the budget."""
    smallest = _alive(space, np.zeros((1, len(space.depths)), dtype=np.int64))
    load = float(budget.load(space.widths(smallest))[0])
    if load > 1.0:
        raise InputError(
            f"the smallest architecture of the space costs {load:.2f} times the budget; "
            f"relax it by at least {100 * (load - 1):.0f} %"
        )


def fit(
    space: SearchSpace, budget: Budget, indices: Indices, rng: np.random.Generator, *, fill: bool = True
) -> Indices:
    """Architectures near the given ones, none of them over budget, and with `fill` as large as it allows.

    While a row is over budget one of its knobs, drawn at random, takes one step down; then single steps up
    are tried in random order and kept where they fit. Skipped modules stay skipped in the second part. Every
    architecture keeps attention somewhere. Raises `InputError` if the budget cannot be reached at all.
    """
    rows = _alive(space, np.clip(indices, 0, space.depths - 1))
    for _ in range(int(space.depths.sum())):
        over = np.flatnonzero(~budget.allows(space.widths(rows)))
        if not len(over):
            break
        part = rows[over]
        # Several steps at once while far over budget, single ones near it.
        steps = np.where(budget.load(space.widths(part)) > 1.15, 3, 1)
        for turn in range(3):
            draw = rng.random(part.shape) * (part > 0)
            column = draw.argmax(1)
            part[np.arange(len(part)), column] -= ((steps > turn) & (draw.max(1) > 0)).astype(np.int64)
        rows[over] = _alive(space, part)
    else:
        check_reachable(space, budget)
        stuck = ~budget.allows(space.widths(rows))
        rows[stuck] = _alive(space, np.zeros_like(rows[stuck]))
    return _fill(space, budget, rows, rng) if fill else rows


def _fill(space: SearchSpace, budget: Budget, rows: Indices, rng: np.random.Generator) -> Indices:
    """Steps up that fit, in random order, twice through all knobs."""
    for _ in range(2):
        order = rng.permuted(np.tile(np.arange(rows.shape[1]), (len(rows), 1)), axis=1)
        for turn in range(rows.shape[1]):
            column = order[:, turn]
            at = (np.arange(len(rows)), column)
            grown = rows.copy()
            grown[at] = np.minimum(rows[at] + 1, space.depths[column] - 1)
            skipped = (rows[at] == 0) & np.array([c[0] == 0 for c in space.choices])[column]
            widths = space.widths(grown)
            better = budget.allows(widths) & ~skipped
            rows[better] = grown[better]
    return rows


def mutate(space: SearchSpace, indices: Indices, rng: np.random.Generator) -> Indices:
    """One to four knobs of each row changed: mostly by a few steps, sometimes to any choice, sometimes a
    whole block copied from another row's."""
    rows = indices.copy()
    n, knobs = rows.shape
    per_block = knobs // space.shape.blocks
    for turn in range(4):
        active = rng.random(n) < (1.0, 0.7, 0.4, 0.2)[turn]
        column = rng.choice(np.flatnonzero(space.depths > 1), size=n)
        at = (np.arange(n), column)
        span = np.maximum(1, space.depths[column] // 6)
        step = rng.integers(1, span + 1) * rng.choice((-1, 1), size=n)
        anywhere = rng.integers(0, space.depths[column])
        target = np.where(rng.random(n) < 0.15, anywhere, rows[at] + step)
        rows[at] = np.where(active, np.clip(target, 0, space.depths[column] - 1), rows[at])
    copies = np.flatnonzero(rng.random(n) < 0.15)
    if len(copies):
        block = rng.integers(0, space.shape.blocks, size=len(copies))
        other = rng.integers(0, n, size=len(copies))
        columns = block[:, None] * per_block + np.arange(per_block)
        rows[copies[:, None], columns] = indices[other[:, None], columns]
    return _alive(space, rows)


def _alive(space: SearchSpace, rows: Indices) -> Indices:
    """Give the last block one KV group in rows that keep attention nowhere."""
    widths = space.widths(rows)
    dead = ~(widths[..., 0] > 0).any(1)
    if dead.any():
        with_attention = [k for k in range(0, rows.shape[1], 3) if space.choices[k][-1] > 0]
        column = with_attention[-1]
        rows[dead, column] = max(1, 0) if space.choices[column][0] == 0 else 0
    return rows
