"""The residual stream, block by block: a model taken apart into the steps that repair works between."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.blockwise import Call, Reached, entry
from nas.families import ATTENTION, MLP, Layer, layers_of
from nas.modeling_subnet import AlibiAttention
from nas.placement import device_of, keeper, placement_of, resident


class Stream:
    """The residual stream of a model on some windows, in batches (batch, seq_len, hidden), at any block.

    Every state on the way is kept for the next who asks, where all of them together take at most `room`
    bytes; otherwise the stream runs forward once, and from the start again for who asks for less. Of a placed
    model one block at a time is on the device, and a state larger than the placement's room in files.
    Leave the states as they are. `arguments` are the keywords that each block passes to its attention, for
    one window; `keep` keeps batches of a stream as this one does.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, batch_size: int = 8, room: int = 2**31
    ) -> None:
        self._layers = layers_of(model)
        self._device = device_of(model)
        self.keep = keeper(model)
        entry_states, calls = entry(model, windows, batch_size)
        self.arguments = Arguments(self._layers, calls, entry_states[0][:1].clone(), self._device)
        self._states = {0: entry_states}  # 2 b in front of block b, 2 b + 1 behind its attention
        size = windows.numel() * entry_states[0].shape[-1] * entry_states[0].itemsize
        placement = placement_of(model)
        most = room if placement is None else min(room, placement.room)
        self._keep_all = size * (2 * len(self._layers) + 1) <= most

    def before(self, block: int) -> Sequence[Tensor]:
        """The states in front of a block; behind the last one for their number."""
        return self._at(2 * block)

    def middle(self, block: int) -> Sequence[Tensor]:
        """The states between a block's attention and its MLP."""
        return self._at(2 * block + 1)

    @torch.no_grad()
    def _at(self, point: int) -> Sequence[Tensor]:
        nearest = max(known for known in self._states if known <= point)
        for here in range(nearest, point):
            states, layer = self._states[here], self._layers[here // 2]
            with resident(layer.module, self._device):
                if here % 2 == 0:
                    arguments = self.arguments[here // 2]
                    states = self.keep(attention_part(layer, h, arguments) for h in states)
                else:
                    before = self._states[here - 1]
                    states = self.keep(mlp_part(layer, h, b) for h, b in zip(states, before, strict=True))
            if not self._keep_all:  # but what the next part will start from
                needed = {0, here} if here % 2 == 0 else {0}
                self._states = {known: value for known, value in self._states.items() if known in needed}
            self._states[here + 1] = states
        return self._states[point]


def attention_part(layer: Layer, h: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The stream behind a block's attention, from the one before the block."""
    return layer.join(ATTENTION, h, layer.attend(layer.norm(ATTENTION, h), arguments))


def mlp_part(layer: Layer, h: Tensor, before: Tensor) -> Tensor:
    """The stream behind a block, from those behind its attention and before the block."""
    return layer.join(MLP, h, layer.feed(layer.norm(MLP, layer.read(before, h))))


def input_of(module: nn.Module, run: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """What `module` would be called with in the course of `run(x)`, without running it or anything behind."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0])
        raise Reached

    hook = module.register_forward_pre_hook(catch)
    try:
        run(x)
    except Reached:
        pass
    finally:
        hook.remove()
    return caught[0]


class Arguments:
    """The keywords that each block of a model passes to its attention, for one window: by block, each found
    when it is first asked for."""

    def __init__(self, layers: list[Layer], calls: list[Call], window: Tensor, device: torch.device) -> None:
        self._layers, self._calls, self._window, self._device = layers, calls, window, device
        self._known: dict[int, dict[str, Any]] = {}

    def __getitem__(self, block: int) -> dict[str, Any]:
        if block not in self._known:
            layer = self._layers[block]
            with resident(layer.module, self._device):
                self._known[block] = attention_arguments(layer, self._window, self._calls[block])
        return self._known[block]


@torch.no_grad()
def attention_arguments(layer: Layer, h: Tensor, call: Call) -> dict[str, Any]:
    """The keywords that a block passes to its attention, for one window, from the block's own `call`; the
    stream `h` (1, seq_len, hidden) may be anything."""
    noted: dict[str, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(_own_forward(module)).bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        if "residual" in given:  # of an attention that adds the stream itself (bloom's)
            given["residual"] = torch.zeros_like(given["residual"][:1, :1])
        unwanted = ("hidden_states", "past_key_values", "layer_past")
        noted.update({name: value for name, value in given.items() if name not in unwanted})
        raise Reached

    hook = layer.attention.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call(layer.module, h)
    except Reached:
        pass
    finally:
        hook.remove()
    return noted


def _own_forward(attention: nn.Module) -> Callable[..., Any]:
    """The forward of the family's class, which names its arguments."""
    classes: list[Any] = [c for c in type(attention).__mro__ if c is not AlibiAttention]
    forward = next(c.forward for c in classes if "forward" in c.__dict__)
    return cast(Callable[..., Any], forward.__get__(attention))
