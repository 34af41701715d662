"""Moves in a search space, many architectures at a time: fitting to a budget and mutation.

Architectures are rows of choice indices (n, knobs) here; see `SearchSpace.widths`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.cost import FLAGS, LATENCY, Budget
from nas.space import SearchSpace

Indices = NDArray[np.int64]


def check_reachable(space: SearchSpace, budget: Budget) -> None:
    """Raise `InputError` if not even the smallest usable architecture of the space fits the budget, with the
    least that can be asked for of each cost whose limit is too small."""
    least = budget.cost.of_widths(space.widths(smallest(space)), budget.limits)
    whole = budget.cost(space.shape.parent)
    sentences = []
    for name, limit in budget.limits.items():
        need = least[name][0].item()
        if need <= limit:
            continue
        asked, enough = limit, need
        if name == "block_parameters":  # asked for as a fraction, rounded up so that it suffices
            asked, enough = (np.ceil(1e4 * size / whole[name]) / 1e4 for size in (limit, need))
        sentence = f"{FLAGS[name]} {asked:.16g} is too small: give {enough:.16g} or more"
        if name == LATENCY:
            enough = float(np.ceil(100 * need) / 100)
            sentence = (
                f"{FLAGS[name]} {asked:.4g} is too small: give {enough:.6g} ms or more (the parent takes "
                f"{whole[name]:.4g} ms)"
            )
        sentences.append(sentence)
    if sentences:
        raise InputError("; ".join(sentences))


def smallest(space: SearchSpace) -> Indices:
    """The smallest usable architecture of the space, (1, knobs)."""
    return keep_attention(space, np.zeros((1, len(space.depths)), dtype=np.int64))


def fit(
    space: SearchSpace,
    budget: Budget,
    indices: Indices,
    rng: np.random.Generator,
    *,
    fill: bool = True,
    held: NDArray[np.bool_] | None = None,
) -> Indices:
    """Architectures near the given ones, none of them over budget, and with `fill` as large as it allows.

    While a row is over budget one of its knobs, drawn at random, takes one step down; then single steps up
    are tried in random order and kept where they fit, until none does. Skipped modules stay skipped in the
    second part. The choices marked in `held` (n, knobs) stay as they are where the budget can be met so.
    Every architecture keeps attention somewhere. Raises `InputError` if the budget cannot be reached at all.
    """
    rows = keep_attention(space, np.clip(indices, 0, space.depths - 1))
    held = np.zeros(rows.shape, dtype=bool) if held is None else held
    for _ in range(int(space.depths.sum())):
        over = np.flatnonzero(~budget.allows(space.widths(rows)))
        if not len(over):
            break
        part = rows[over]
        # Several steps at once while far over budget, single ones near it.
        steps = np.where(budget.load(space.widths(part)) > 1.15, 3, 1)
        for turn in range(3):
            draw = rng.random(part.shape) * ((part > 0) & ~held[over])
            column = draw.argmax(1)
            part[np.arange(len(part)), column] -= ((steps > turn) & (draw.max(1) > 0)).astype(np.int64)
        rows[over] = keep_attention(space, part)
    else:
        check_reachable(space, budget)
        stuck = ~budget.allows(space.widths(rows))
        rows[stuck] = keep_attention(space, np.zeros_like(rows[stuck]))
    return _fill(space, budget, rows, rng, held) if fill else rows


def _fill(
    space: SearchSpace, budget: Budget, rows: Indices, rng: np.random.Generator, held: NDArray[np.bool_]
) -> Indices:
    """Steps up that fit, in random order, through all knobs until a row has none left."""
    skippable = np.array([choices[0] == 0 for choices in space.choices])
    growing = np.arange(len(rows))
    while len(growing):
        part, each = rows[growing], np.arange(len(growing))
        order = rng.permuted(np.tile(np.arange(rows.shape[1]), (len(part), 1)), axis=1)
        for column in order.T:
            now = part[each, column]
            stays = (
                ((now == 0) & skippable[column]) | (now + 1 == space.depths[column]) | held[growing, column]
            )
            able = np.flatnonzero(~stays)
            grown = part[able]
            grown[np.arange(len(able)), column[able]] += 1
            fits = budget.allows(space.widths(grown))
            part[able[fits]] = grown[fits]
        changed = (part != rows[growing]).any(1)
        rows[growing] = part
        growing = growing[changed]
    return rows


def mutate(space: SearchSpace, indices: Indices, rng: np.random.Generator) -> Indices:
    """One to four knobs of each row changed: mostly by a few steps, sometimes to any choice, sometimes a
    whole block copied from another row's."""
    rows = indices.copy()
    n, knobs = rows.shape
    per_block = knobs // space.shape.blocks
    free = np.flatnonzero(space.depths > 1)
    if not len(free):
        return keep_attention(space, rows)
    for turn in range(4):
        active = rng.random(n) < (1.0, 0.7, 0.4, 0.2)[turn]
        column = rng.choice(free, size=n)
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
    return keep_attention(space, rows)


def keep_attention(space: SearchSpace, rows: Indices) -> Indices:
    """Give the block with the smallest attention to be had its smallest one, in rows (changed in place) that
    keep attention nowhere; the last block where all are alike."""
    dead = ~(space.widths(rows)[..., 0] > 0).any(1)
    if dead.any():

        def least(column: int) -> tuple[int, int]:
            groups, queries = space.choices[column], space.choices[column + 1]
            each = space.shape.per_group + int(queries[0]) * space.shape.per_query
            return int(groups[groups > 0][0]) * each, -column

        column = min((k for k in range(0, rows.shape[1], 3) if space.choices[k][-1] > 0), key=least)
        rows[dead, column] = int(space.choices[column][0] == 0)
    return rows


def apart(indices: Indices, count: int, distance: int) -> Indices:
    """Which of the rows (n, knobs), taken in their order, differ from all taken before in at least `distance`
    knobs: at most `count` row numbers."""
    chosen: list[int] = []
    for number, row in enumerate(indices):
        if len(chosen) == count:
            break
        if not len(chosen) or ((indices[chosen] != row).sum(1) >= distance).all():
            chosen.append(number)
    return np.array(chosen, dtype=np.int64)
