"""A model block by block: what flows into the first block, what each is called with, and the logits behind.

All windows go through one block before the next is looked at, so that only one needs to be on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.families import blocks_of, of_batch
from nas.placement import device_of, keeper, placement_of, resident


class Reached(Exception):
    """Carries nothing: the wanted module was reached, the rest need not run."""


@dataclass(frozen=True)
class Call:
    """What a model passes to one of its blocks beside the stream, for one window: masks and positions, which
    broadcast over a batch."""

    rest: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def __call__(self, block: nn.Module, h: Tensor) -> Tensor:
        """The stream behind a block, from the one before it (batch, seq_len, hidden)."""
        behind = block(h, *self.rest, **of_batch(self.keywords, len(h)))
        return behind[0] if isinstance(behind, tuple) else behind


@torch.no_grad()
def entry(model: PreTrainedModel, windows: Tensor, batch_size: int) -> tuple[Sequence[Tensor], list[Call]]:
    """The stream in front of block 0 for `windows` (n, seq_len), in batches (batch, seq_len, hidden), and the
    calls of all blocks. No block is run but for the first, on one window."""
    device, blocks = device_of(model), blocks_of(model)
    calls: list[Call] = []

    def note(last: bool, pair: bool, *args: Any, **keywords: Any) -> Any:
        h = args[0] if args else keywords.pop("hidden_states")
        calls.append(Call(args[1:], keywords))
        if last:
            raise Reached
        return (h,) if pair else h

    def first(state: list[Tensor], *args: Any, **keywords: Any) -> Any:
        state.append(args[0] if args else keywords["hidden_states"])
        raise Reached

    def run(ids: Tensor, stubs: Sequence[Callable[..., Any]]) -> None:
        with _in_place_of(blocks, stubs):
            try:
                model.base_model(ids.to(device), use_cache=False)
            except Reached:
                return

    def batches() -> Iterator[Tensor]:
        for batch in windows.split(batch_size):
            state: list[Tensor] = []
            run(batch, [partial(first, state)])
            yield state[0].clone()

    with resident(ends_of(model), device):
        states = keeper(model)(batches())
        run(windows[:1], [partial(note, True, False)])
        with resident(blocks[0], device):
            call = calls.pop()
            pair = isinstance(blocks[0](states[0][:1], *call.rest, **call.keywords), tuple)
        run(windows[:1], [*[partial(note, False, pair)] * (len(blocks) - 1), partial(note, True, pair)])
    return states, calls


def logits(model: PreTrainedModel, windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Logits (batch, seq_len, vocab) of `windows` (n, seq_len), batch by batch; nothing here keeps those that
    were taken. Of a placed model all windows go through one block after the other first, and wait for the
    head in front of it. To be asked where gradients are off."""
    if placement_of(model) is None:
        for batch in windows.split(batch_size):
            yield model(batch.to(model.device), use_cache=False).logits
        return
    device, blocks, keep = device_of(model), blocks_of(model), keeper(model)
    states, calls = entry(model, windows, batch_size)
    pair = False
    for block, call in zip(blocks, calls, strict=True):
        with resident(block, device):
            pair = isinstance(block(states[0][:1], *call.rest, **call.keywords), tuple)
            states = keep(call(block, h) for h in states)
    for h, batch in zip(states, windows.split(batch_size), strict=True):
        yield behind_blocks(model, (h,) if pair else h, batch.to(device))


def behind_blocks(model: PreTrainedModel, known: Any, ids: Tensor) -> Tensor:
    """The logits of a batch by all that a family does behind its last block, whose output is `known`."""
    blocks = blocks_of(model)
    with resident(ends_of(model), ids.device), _in_place_of(blocks, [partial(_say, known)] * len(blocks)):
        return model(ids, use_cache=False).logits


def ends_of(model: PreTrainedModel) -> list[nn.Module]:
    """All modules of a model outside its blocks: embeddings, final norm, head."""
    inside = {id(module) for module in blocks_of(model).modules()}
    return [module for module in model.modules() if id(module) not in inside]


@contextmanager
def fetching(model: PreTrainedModel) -> Iterator[torch.device]:
    """The device of a model, on which it can be called as a whole in here: where it is placed, every block is
    fetched whenever it is called."""
    device = device_of(model)
    if placement_of(model) is None:
        yield device
        return
    blocks = blocks_of(model)

    def fetched(block: nn.Module, *args: Any, **keywords: Any) -> Any:
        with resident(block, device):
            return type(block).forward(block, *args, **keywords)

    with resident(ends_of(model), device), _in_place_of(blocks, [partial(fetched, b) for b in blocks]):
        yield device


def _say(known: Any, *_: Any, **__: Any) -> Any:
    return known


@contextmanager
def _in_place_of(blocks: nn.ModuleList, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Have the first blocks do something else for a while."""
    try:
        for block, forward in zip(blocks, forwards, strict=False):
            block.__dict__["forward"] = forward
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
