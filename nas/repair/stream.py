"""The residual stream, block by block: a model taken apart into the steps that repair works between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.families import Family, blocks_of


class Stream:
    """The dense residual stream of some windows, moved forward through the parent's blocks.

    `states` holds it in batches (batch, seq_len, hidden) in front of block `position`; `arguments` are the
    keywords that the model passes to each of its blocks.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, batch_size: int) -> None:
        self._layers = blocks_of(model)
        self.states, self.arguments = _entry(model, windows, batch_size)
        self.position = 0

    def advance(self, position: int) -> None:
        """Move to in front of block `position`."""
        while self.position < position:
            layer, arguments = self._layers[self.position], self.arguments[self.position]
            self.states = [layer(h, **arguments) for h in self.states]
            self.position += 1


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
