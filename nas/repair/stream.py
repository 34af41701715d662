"""The residual stream, block by block: a model taken apart into the steps that repair works between."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.families import ATTENTION, MLP, Layer, layers_of
from nas.modeling_subnet import AlibiAttention


class Stream:
    """The residual stream of a model on some windows, in batches (batch, seq_len, hidden), at any block.

    Every state on the way is kept for the next who asks, where all of them together take at most `room`
    bytes; otherwise the stream runs forward once, and from the start again for who asks for less.
    `arguments` are the keywords that the model passes to each of its blocks. Leave the states as they are.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, batch_size: int = 8, room: int = 2**31
    ) -> None:
        self._layers = layers_of(model)
        entry, self.arguments = _entry(model, windows, batch_size)
        self._states = {0: entry}  # 2 b in front of block b, 2 b + 1 behind its attention
        size = sum(state.numel() * state.itemsize for state in entry)
        self._keep = size * (2 * len(self._layers) + 1) <= room

    def before(self, block: int) -> list[Tensor]:
        """The states in front of a block; behind the last one for their number."""
        return self._at(2 * block)

    def middle(self, block: int) -> list[Tensor]:
        """The states between a block's attention and its MLP."""
        return self._at(2 * block + 1)

    def _at(self, point: int) -> list[Tensor]:
        nearest = max(known for known in self._states if known <= point)
        for here in range(nearest, point):
            states, layer = self._states[here], self._layers[here // 2]
            if here % 2 == 0:
                states = [attention_part(layer, h, self.arguments[here // 2]) for h in states]
            else:
                before = self._states[here - 1]
                states = [mlp_part(layer, h, b) for h, b in zip(states, before, strict=True)]
            if not self._keep:  # but what the next part will start from
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


class Reached(Exception):
    """Carries nothing: the wanted module was reached, the rest need not run."""


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


def _entry(
    model: PreTrainedModel, windows: Tensor, batch_size: int
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """The stream in front of block 0 in batches, and the keywords of every attention."""
    layers = layers_of(model)
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def first(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        raise Reached

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(_own_forward(module)).bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        if "residual" in given:  # of an attention that adds the stream itself (bloom's)
            given["residual"] = torch.zeros_like(given["residual"][:1, :1])
        unwanted = ("hidden_states", "past_key_values", "layer_past")
        arguments.append({name: value for name, value in given.items() if name not in unwanted})

    # One window tells the keywords: masks and positions broadcast over the batch.
    hooks = [layer.attention.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        model.base_model(windows[:1].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    hook = layers[0].module.register_forward_pre_hook(first, with_kwargs=True)
    try:
        for batch in windows.split(batch_size):
            try:
                model.base_model(batch.to(model.device), use_cache=False)
            except Reached:
                continue
    finally:
        hook.remove()
    return [state.clone() for state in states], [dict(a) for a in arguments]


def _own_forward(attention: nn.Module) -> Callable[..., Any]:
    """The forward of the family's class, which names its arguments."""
    classes: list[Any] = [c for c in type(attention).__mro__ if c is not AlibiAttention]
    forward = next(c.forward for c in classes if "forward" in c.__dict__)
    return cast(Callable[..., Any], forward.__get__(attention))
