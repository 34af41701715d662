"""Explicit sets of units: which channels of heads and of MLPs are kept, not only how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.architecture import Architecture, Block
from nas.cost import Budget
from nas.shape import Shape, head_widths_of, widths_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BlockSets:
    """What one block keeps: rotary pairs inside the heads of each KV group (groups, head_dim / 2), as many in
    each group, and FFN channels (ffn,). All heads are kept."""

    pairs: Mask
    channels: Mask


@dataclass(frozen=True, eq=False)
class UnitSets:
    """What every block of a parent keeps; blocks that are not `alive` (blocks,) keep nothing for now."""

    blocks: tuple[BlockSets, ...]
    alive: Mask

    def architecture(self, shape: Shape) -> Architecture:
        """How much is kept."""
        kept = []
        for source, (block, alive) in enumerate(zip(self.blocks, self.alive, strict=True)):
            if alive:
                width = 2 * int(block.pairs[0].sum())
                kept.append(
                    Block(
                        source,
                        shape.kv_groups,
                        shape.queries_per_group,
                        int(block.channels.sum()),
                        None if width == shape.head_dim else width,
                    )
                )
        return Architecture(shape.hidden, tuple(kept))

    def rotary(self) -> list[Tensor]:
        """Rotary pairs of every block, kept ones first, (groups, head_dim / 2) each: as `cut` takes it."""
        return [torch.from_numpy(np.argsort(~block.pairs, axis=1, kind="stable")) for block in self.blocks]

    def channels(self) -> list[Tensor]:
        """FFN channels of every block, the kept ones first, (ffn,) each."""
        return [torch.from_numpy(np.argsort(~block.channels, kind="stable")) for block in self.blocks]

    @property
    def key(self) -> bytes:
        """Equal for equal sets."""
        masks = [mask for block in self.blocks for mask in (block.pairs, block.channels)]
        return b"".join(np.packbits(mask).tobytes() for mask in (*masks, self.alive))

    def load(self, budget: Budget) -> float:
        """The cost relative to the budget."""
        shape = budget.cost.shape
        architecture = self.architecture(shape)
        widths, heads = widths_of(architecture, shape), head_widths_of(architecture, shape)
        return float(budget.load(widths[None], heads=heads[None])[0])


def most_important(pairs: Sequence[Tensor], channels: Sequence[Tensor], counts: tuple[int, int]) -> UnitSets:
    """The best units of every block by scores of rotary pairs (groups, head_dim / 2) and channels (ffn,), so
    many of each."""

    def best(scores: Tensor, count: int) -> Mask:
        order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
        found: Mask = mask.cpu().numpy()
        return found

    return UnitSets(
        tuple(
            BlockSets(best(p, counts[0]), best(c, counts[1])) for p, c in zip(pairs, channels, strict=True)
        ),
        np.ones(len(pairs), dtype=bool),
    )


def resized(mask: Mask, count: int, rng: np.random.Generator) -> Mask:
    """The mask (n,) with so many units: random ones leave or join."""
    new = mask.copy()
    have = int(mask.sum())
    if count < have:
        new[rng.choice(np.flatnonzero(mask), have - count, replace=False)] = False
    elif count > have:
        new[rng.choice(np.flatnonzero(~mask), count - have, replace=False)] = True
    return new


def swapped(mask: Mask, overlap: float, rng: np.random.Generator) -> Mask:
    """The mask (n,) with some kept units exchanged for dropped ones, at most a share 1 - `overlap` of them.

    The mask mutation of Search for Efficient LLMs (arXiv 2409.17372, alg. 1) by construction: as printed it
    draws sets until one overlaps enough, which for moderate sizes none ever does.
    """
    kept, dropped = np.flatnonzero(mask), np.flatnonzero(~mask)
    most = min(int((1.0 - overlap) * len(kept) + 1e-9), len(dropped))  # 1 - 0.8 is a little below 0.2
    if most < 1:
        return mask
    count = int(rng.integers(1, most + 1))
    new = mask.copy()
    new[rng.choice(kept, count, replace=False)] = False
    new[rng.choice(dropped, count, replace=False)] = True
    return new


def with_block(sets: UnitSets, block: int, pairs: Mask, channels: Mask) -> UnitSets:
    """The same with other sets in one block."""
    blocks = list(sets.blocks)
    blocks[block] = BlockSets(pairs, channels)
    return replace(sets, blocks=tuple(blocks))
