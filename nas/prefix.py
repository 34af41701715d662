"""Measure subnets one after the other, each only from the block on where it differs from the one before.

Subnets of one parent that begin with the same blocks have the same stream behind them. Sorted by their
blocks, neighbours share the most, and one stream, that of the last subnet, is all that must be kept. What it
spares is what they share: nearly half where one block at a time is replaced, little in a search
(docs/less-work.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nas.architecture import Architecture, Block
from nas.blockwise import behind_blocks, entry
from nas.building import SubnetMeter
from nas.evaluate import Scores, evaluate, free_memory, is_out_of_memory
from nas.families import blocks_of
from nas.shape import Widths, architecture_of

ROOM = 2**32
"""Bytes that the stream may take on the device; where it needs more, only every second, third … is kept, and
none where one alone is larger."""


@dataclass
class PrefixMeter(SubnetMeter):
    """The same scores to the last bit, of a parent that is not placed."""

    room: int = ROOM
    _blocks: tuple[Block, ...] = ()
    _states: dict[int, Sequence[Tensor]] = field(default_factory=dict)
    _size: int = 0
    passed: int = 0
    """Blocks that windows went through so far, of all subnets."""

    def __call__(self, widths: Widths) -> Scores:
        """Scores of one architecture (blocks, 3)."""
        subnet = self.subnet(widths)
        if self.windows.numel() * self.shape.hidden * self.parent.dtype.itemsize > self.room:
            return self.score(subnet)
        try:
            return evaluate(
                subnet, self.windows, batch_size=self.batch_size, divergence=self.divergence,
                passes=partial(self._logits, architecture_of(widths, self.shape)),
            )  # fmt: skip
        except BaseException as error:
            self._forget()  # a stream that broke off
            if not isinstance(error, Exception) or not is_out_of_memory(error):
                raise
        free_memory()
        return self.score(subnet)  # without the stream, which smaller batches would not make smaller

    def _forget(self) -> None:
        self._blocks, self._states = (), {}

    @torch.no_grad()
    def _logits(
        self, architecture: Architecture, model: PreTrainedModel, windows: Tensor, batch_size: int
    ) -> Iterator[Tensor]:
        """Logits batch by batch, from the first block that is not the last subnet's."""
        if self._size != batch_size:
            self._forget()
            self._size = batch_size
        blocks = blocks_of(model)
        if not self._states:
            self._states[0] = entry(model, windows, batch_size)[0]
        one, calls = entry(model, windows[:1], 1)
        pair = isinstance(blocks[0](one[0], *calls[0].rest, **calls[0].keywords), tuple)
        shared = _shared(self._blocks, architecture.blocks)
        start = max(at for at in self._states if at <= shared)
        self._states = {at: states for at, states in self._states.items() if at <= start}
        self._blocks = architecture.blocks
        states = self._states[start]
        size = sum(h.numel() * h.itemsize for h in states)
        step = max(1, -(-size * (len(blocks) + 1) // self.room))
        for at in range(start, len(blocks)):
            states = [calls[at](blocks[at], h) for h in states]
            self.passed += 1
            if (at + 1) % step == 0:
                self._states[at + 1] = states
        for h, batch in zip(states, windows.split(batch_size), strict=True):
            yield behind_blocks(model, (h,) if pair else h, batch.to(h.device))


def _shared(one: Sequence[Block], other: Sequence[Block]) -> int:
    """How many first blocks two architectures have in common."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
