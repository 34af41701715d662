"""One-shot pruning: from scores alone to the widths that fit a budget, a search with one candidate."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from data.errors import InputError
from nas.cost import Budget
from nas.importance import UnitScores
from nas.shape import Shape, Widths


def same_share(budget: Budget, protected: Collection[int] = ()) -> Widths:
    """Widths (blocks, 3) with about the same share of KV groups and of FFN channels kept in every block but
    the `protected` ones, which stay whole: of all numbers of groups, each with as many channels as fit beside
    it, the one whose two shares are nearest. No module is left without a unit.

    Raises `InputError` if the budget cannot be met so.
    """
    shape = budget.cost.shape
    free = [block for block in range(shape.blocks) if block not in set(protected)]

    def widths(groups: int, channels: int) -> Widths:
        rows = shape.whole
        rows[free, 0], rows[free, 2] = groups, channels
        return rows

    fitting = []
    least = shape.kv_groups if shape.whole_attention else 1
    choices = range(max(1, shape.experts_per_token), shape.ffn + 1)
    for groups in range(least, shape.kv_groups + 1):
        fit = int(budget.allows(np.stack([widths(groups, channels) for channels in choices])).sum())
        if fit and free:  # costs rise with every channel
            channels = choices[fit - 1]
            fitting.append((abs(groups / shape.kv_groups - channels / shape.ffn), groups, channels))
    if not fitting:
        load = float(budget.load(widths(least, choices[0])[None])[0])
        raise InputError(
            f"with {len(set(protected))} blocks protected the smallest even cut costs {load:.2f} times the "
            "budget; relax the budget or protect fewer blocks"
        )
    _, groups, channels = min(fitting)
    return widths(groups, channels)


def global_threshold(scores: Sequence[UnitScores], budget: Budget, protected: Collection[int] = ()) -> Widths:
    """Widths (blocks, 3) that keep the best-scored KV groups and FFN channels of all blocks together, as many
    as fit the budget (FLAP, arXiv 2312.11983, sec. 3.3: one threshold, units weighted by what they cost).

    For scores that compare blocks, and groups with channels. The `protected` blocks stay whole. A block may
    lose a module or all of itself; the best group is kept in any case, as a model needs attention somewhere.
    Queries are not pruned; an attention that is whole or nothing counts as one unit, and experts fewer than a
    token visits as none. Raises `InputError` if the budget cannot be met so.
    """
    shape = budget.cost.shape
    units = [
        (float(score), block, kind)
        for block, of_block in enumerate(scores)
        if block not in set(protected)
        for kind, values in ((0, _groups(of_block, shape)), (2, of_block.channels))
        for score in values.tolist()
    ]
    units.sort(key=lambda unit: -unit[0])  # stable: equal scores keep the order of blocks
    if not protected:
        first = next(place for place, unit in enumerate(units) if unit[2] == 0)
        units.insert(0, units.pop(first))

    def widths(count: int) -> Widths:
        rows = np.zeros((shape.blocks, 3), dtype=np.int64)
        rows[list(protected)] = shape.kv_groups, shape.queries_per_group, shape.ffn
        for _, block, kind in units[:count]:
            rows[block, kind] += shape.kv_groups if shape.whole_attention and kind == 0 else 1
        rows[rows[:, 2] < shape.experts_per_token, 2] = 0
        rows[:, 1] = np.where(rows[:, 0] > 0, shape.queries_per_group, 0)
        return rows

    low, high = 0, len(units)
    while low < high:  # costs rise with every unit, so the most that fit can be found by halving
        middle = (low + high + 1) // 2
        low, high = (middle, high) if budget.allows(widths(middle)[None])[0] else (low, middle - 1)
    result = widths(low)
    if not result[:, 0].any() or not budget.allows(result[None])[0]:
        load = float(budget.load(widths(1)[None])[0])
        raise InputError(
            f"with {len(set(protected))} blocks protected and one KV group the model costs {load:.2f} times "
            "the budget; relax the budget or protect fewer blocks"
        )
    return result


def _groups(scores: UnitScores, shape: Shape) -> Tensor:
    """Scores of what an attention is kept by, (G,) or (1,)."""
    return scores.groups.sum(0, keepdim=True) if shape.whole_attention else scores.groups


def ends(shape: Shape, first: int, last: int) -> tuple[int, ...]:
    """The first and the last so many blocks, which published pruners protect."""
    return tuple(
        sorted({*range(min(first, shape.blocks)), *range(max(0, shape.blocks - last), shape.blocks)})
    )
