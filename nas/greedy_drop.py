"""Dropping whole blocks one by one, each time the one that is missed least (SLEB)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.block_importance import losses_without
from nas.shape import Shape


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
    (SLEB, arXiv 2402.09025, alg. 1). `progress` is told of each evaluation. Raises `InputError` if fewer
    than `count` blocks may go, or none would be left.
    """
    free = [block for block in range(shape.blocks) if block not in set(protected)]
    if not 0 <= count <= min(len(free), shape.blocks - 1):
        raise InputError(
            f"{count} of {shape.blocks} blocks were to be dropped, and only {len(free)} are not protected; "
            "keep more"
        )
    gone: list[int] = []
    for _ in range(count):
        losses = losses_without(
            parent, shape, windows, [block for block in free if block not in gone], gone,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        gone.append(min(losses, key=losses.__getitem__))
    return gone
