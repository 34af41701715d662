"""Dropping whole blocks one by one, each time the one that is missed least (SLEB)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.evaluate import evaluate
from nas.shape import Shape
from nas.subnet import cut


def drop_greedily(
    parent: PreTrainedModel,
    shape: Shape,
    windows: Tensor,
    count: int,
    protected: Collection[int] = (),
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> list[int]:
    """The `count` blocks that go, in the order they go: in each round every block that is left and not
    `protected` is left out in turn, and the one without which the loss on `windows` is lowest is dropped
    (SLEB, arXiv 2402.09025, alg. 1). `progress` is told of each evaluation. Raises `ValueError` if fewer
    than `count` blocks may go, or none would be left.
    """
    free = [block for block in range(shape.blocks) if block not in set(protected)]
    if not 0 <= count <= min(len(free), shape.blocks - 1):
        raise ValueError(f"{count} of {len(free)} unprotected blocks cannot be dropped")
    gone: list[int] = []
    for _ in range(count):
        losses = {}
        for block in free:
            if block not in gone:
                subnet = cut(parent, shape, without(shape, {*gone, block}))
                losses[block] = evaluate(subnet, windows, batch_size=batch_size).nll
                progress(1)
        gone.append(min(losses, key=losses.__getitem__))
    return gone


def without(shape: Shape, blocks: Collection[int]) -> Architecture:
    """The parent's architecture without some blocks."""
    return Architecture(shape.hidden, tuple(b for b in shape.parent.blocks if b.source not in blocks))
