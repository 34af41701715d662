"""Shapes and spaces without a model, small enough to enumerate, and a score that is known exactly."""

import itertools

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from nas.cost import COUNTED, Budget, CostModel
from nas.sampling import Hints
from nas.shape import Shape, Widths
from nas.space import SearchSpace, default_space

HIDDEN, HEAD_DIM, SEQ_LEN = 16, 4, 8


def small_shape(blocks: int = 3, kv_groups: int = 2, queries: int = 2, ffn: int = 4) -> Shape:
    """The shape of a LLaMA of this many blocks, KV groups, queries per group and FFN channels."""
    return Shape(
        family="llama",
        hidden=HIDDEN,
        blocks=blocks,
        kv_groups=kv_groups,
        queries_per_group=queries,
        head_dim=HEAD_DIM,
        ffn=ffn,
        vocab=32,
        per_group=2 * HEAD_DIM * HIDDEN,
        per_query=2 * HEAD_DIM * HIDDEN,
        attention_fixed=HIDDEN,
        per_channel=3 * HIDDEN,
        mlp_fixed=HIDDEN,
        outside=32 * HIDDEN + HIDDEN,
    )


def small_space(blocks: int = 3, **widths: int) -> SearchSpace:
    """Every choice there is in a small shape."""
    return default_space(small_shape(blocks, **widths), steps=4)


def part_of(space: SearchSpace, share: float, cost: str = "block_parameters") -> Budget:
    """A budget of this share of what the parent costs."""
    model = CostModel(space.shape, SEQ_LEN, 2)
    return Budget(model, {cost: max(1, int(share * model(space.shape.parent)[cost]))})


def damage(widths: Widths) -> NDArray[np.float64]:
    """Harm done to a parent of `small_shape`, (..., blocks, 3) -> (...,): more for every unit that goes, by
    its block and part, and the more the fewer are left; 0 for the parent."""
    block = np.arange(widths.shape[-2])
    attention = (0.3 + 0.17 * (block * 5 % 7)) * (1 - widths[..., 0] * widths[..., 1] / 4) ** 1.5
    mlp = (0.2 + 0.13 * (block * 3 % 5)) * (1 - widths[..., 2] / 4) ** 1.3
    harm: NDArray[np.float64] = (attention + mlp).sum(-1)
    return harm


def score(widths: Widths) -> NDArray[np.float64]:
    """An exact predictor: minus the damage."""
    return -damage(widths)


def hints_of(shape: Shape) -> Hints:
    """As if what a part keeps were what it is worth, and the middle blocks did least."""
    groups, queries = np.arange(shape.kv_groups + 1), np.arange(shape.queries_per_group + 1)
    error = 1 - np.outer(groups, queries) / (shape.kv_groups * shape.queries_per_group)
    error[0, 1:] = error[1:, 0] = np.nan
    mlp = 1 - np.arange(shape.ffn + 1) / shape.ffn
    influence = np.abs(np.arange(shape.blocks) - shape.blocks / 2.3)
    return Hints(influence, np.tile(error, (shape.blocks, 1, 1)), np.tile(mlp, (shape.blocks, 1)))


def usable(widths: Widths) -> NDArray[np.bool_]:
    """Whether there is attention anywhere, (..., blocks, 3) -> (...,): a model that can be built."""
    keeps: NDArray[np.bool_] = (widths[..., 0] > 0).any(-1)
    return keeps


def everything(space: SearchSpace, budget: Budget | None = None) -> Widths:
    """All usable architectures of a space (within a budget), once each, (n, blocks, 3)."""
    rows = np.array(list(itertools.product(*(range(int(depth)) for depth in space.depths))), dtype=np.int64)
    widths = np.unique(space.widths(rows), axis=0)
    widths = widths[usable(widths)]
    return widths if budget is None else widths[budget.allows(widths)]


@st.composite
def spaces(draw: st.DrawFn, most_blocks: int = 4) -> SearchSpace:
    """A small space of any shape, with any of its choices missing."""
    shape = small_shape(
        draw(st.integers(1, most_blocks)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
    )
    whole = default_space(shape, steps=4)
    kept = {
        name: sorted(draw(st.sets(st.sampled_from(choices), min_size=1))) if draw(st.booleans()) else choices
        for name, choices in whole.knobs.items()
    }
    # Some block can have the smallest attention there is.
    kept["0.kv_groups"] = sorted({1, *kept["0.kv_groups"]})
    kept["0.queries_per_group"] = sorted({1, *kept["0.queries_per_group"]})
    return whole.restrict(kept)


@st.composite
def budgets(draw: st.DrawFn, space: SearchSpace) -> Budget:
    """One limit or several, from a little below the smallest architecture of a space to the whole parent."""
    model = CostModel(space.shape, SEQ_LEN, 2)
    whole = model(space.shape.parent)
    names = draw(st.sets(st.sampled_from(COUNTED), min_size=1))
    return Budget(model, {name: max(1, int(draw(st.floats(0.01, 1.1)) * whole[name])) for name in names})
