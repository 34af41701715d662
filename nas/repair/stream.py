"""The residual stream, block by block: a model taken apart into the steps that repair works between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.families import Family, blocks_of, family_of


class Stream:
    """The residual stream of a model on some windows, in batches (batch, seq_len, hidden), at any block.

    Every state on the way is kept for the next who asks, where all of them together take at most `room`
    bytes; otherwise the stream runs forward once, and from the start again for who asks for less.
    `arguments` are the keywords that the model passes to each of its blocks. Leave the states as they are.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, batch_size: int = 8, room: int = 2**31
    ) -> None:
        self._layers, self._family = blocks_of(model), family_of(model.config)
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
        states = self._states[nearest]
        for here in range(nearest, point):
            layer, arguments = self._layers[here // 2], self.arguments[here // 2]
            if here % 2:
                states = [mlp_part(layer, self._family, h) for h in states]
            else:
                states = [attention_part(layer, self._family, h, arguments) for h in states]
            if self._keep:
                self._states[here + 1] = states
        if not self._keep:
            self._states = {0: self._states[0], point: states}
        return states


def attention_part(layer: nn.Module, family: Family, h: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The stream behind a block's attention, from the one before the block."""
    out, _ = layer.self_attn(hidden_states=getattr(layer, family.attention_pre)(h), **arguments)
    return join(layer, family.attention_post, h, out)


def mlp_part(layer: nn.Module, family: Family, h: Tensor) -> Tensor:
    """The stream behind a block's MLP, from the one behind its attention."""
    return join(layer, family.mlp_post, h, layer.mlp(getattr(layer, family.mlp_pre)(h)))


def join(layer: nn.Module, post: str | None, h: Tensor, out: Tensor) -> Tensor:
    """Add a module's output to the stream as the block does."""
    if post is not None:
        out = getattr(layer, post)(out)
    return h + out * getattr(layer, "residual_multiplier", 1.0)


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
    """The stream in front of block 0 in batches, and the keywords of every block."""
    layers = blocks_of(model)
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def first(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0])
        raise Reached

    def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        arguments.append({name: value for name, value in kwargs.items() if name != "past_key_values"})

    # One window tells the keywords: masks and positions broadcast over the batch.
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        model.model(windows[:1].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    hook = layers[0].register_forward_pre_hook(first, with_kwargs=True)
    try:
        for batch in windows.split(batch_size):
            try:
                model.model(batch.to(model.device), use_cache=False)
            except Reached:
                continue
    finally:
        hook.remove()
    return [state.clone() for state in states], [dict(a) for a in arguments]
