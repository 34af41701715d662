"""One decoder layer of any family, by the same names for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.families.table import layout_of
from nas.modeling_subnet import Layout

ATTENTION, MLP = "attention", "mlp"
OUTPUTS = ("o_proj", "down_proj")
"""Projections whose columns, not rows, belong to units."""


def _projection(name: str) -> Any:
    def get(layer: Layer) -> nn.Linear:
        return layer.projection(name)

    return property(get, doc=f"The block's {name}, whatever its family calls it.")


@dataclass(frozen=True)
class Layer:
    """A block of a model whose projections are plain linear maps (`nas.families.plain`).

    `module` is the family's own, which its attributes are read from and written to.
    """

    module: nn.Module
    layout: Layout

    q_proj = _projection("q_proj")
    k_proj = _projection("k_proj")
    v_proj = _projection("v_proj")
    o_proj = _projection("o_proj")
    gate_proj = _projection("gate_proj")
    up_proj = _projection("up_proj")
    down_proj = _projection("down_proj")

    @property
    def attention(self) -> nn.Module:
        """The attention."""
        return self.module.get_submodule(self.layout.attention)

    @property
    def mlp(self) -> nn.Module:
        """The MLP; the block itself where that holds its matrices."""
        return self.module.get_submodule(self.layout.mlp)

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate_proj."""
        return self.layout.gated and not self.layout.experts

    @property
    def names(self) -> tuple[str, ...]:
        """The projections that the family has: of the attention, then of the MLP unless it is experts."""
        attention = ("q_proj", "k_proj", "v_proj", "o_proj")
        if self.layout.experts:
            return attention
        return (*attention, *(("gate_proj",) if self.gated else ()), "up_proj", "down_proj")

    def path(self, name: str) -> str:
        """Where the block keeps a projection."""
        lay = self.layout
        if name == "o_proj":
            return lay.within(ATTENTION, lay.output)
        if name in ("q_proj", "k_proj", "v_proj"):
            return lay.within(ATTENTION, f"{lay.qkv}.{name}" if lay.qkv else name)
        if name == "down_proj":
            return lay.within(MLP, lay.down)
        if lay.gate_up:
            return lay.within(MLP, f"{lay.gate_up}.{name}")
        return lay.within(MLP, name if name == "gate_proj" else lay.up)

    def projection(self, name: str) -> nn.Linear:
        """One projection; an AttributeError where the module is skipped."""
        return cast(nn.Linear, self.module.get_submodule(self.path(name)))

    def put(self, name: str, linear: nn.Module) -> None:
        """Set one projection."""
        self.module.set_submodule(self.path(name), linear)

    def projections(self) -> Iterator[tuple[str, nn.Linear]]:
        """All projections by name, but for those of skipped modules."""
        for name in self.names:
            try:
                found = self.module.get_submodule(self.path(name))
            except AttributeError:
                continue
            if isinstance(found, nn.Linear):
                yield name, found

    def inputs(self, part: str) -> tuple[nn.Linear, ...]:
        """The projections that read the normed stream in the attention or the MLP."""
        return tuple(self.projection(name) for name in self._of(part) if name not in OUTPUTS)

    def output(self, part: str) -> nn.Linear:
        """The output matrix of the attention or the MLP."""
        return self.projection("o_proj" if part == ATTENTION else "down_proj")

    def _of(self, part: str) -> tuple[str, ...]:
        return self.names[:4] if part == ATTENTION else self.names[4:]

    def norm(self, part: str, h: Tensor) -> Tensor:
        """What the attention or the MLP reads, from the residual stream."""
        name = self.layout.attention_pre if part == ATTENTION else self.layout.mlp_pre
        return getattr(self.module, name)(h) if name else h

    def join(self, part: str, h: Tensor, out: Tensor) -> Tensor:
        """The stream with the output of the attention or the MLP added as the block does it."""
        post = self.layout.attention_post if part == ATTENTION else self.layout.mlp_post
        if post:
            out = getattr(self.module, post)(out)
        return h + out * getattr(self.module, "residual_multiplier", 1.0)

    def attend(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The attention's output for a normed input and the keywords that it gets for one window."""
        return self.attention(hidden_states=x, **of_batch(arguments, len(x)))[0]

    def opened(self, x: Tensor) -> Tensor:
        """What the activation function makes of a normed input, (..., P): of its gates, if any."""
        act = self.mlp.get_submodule(self.layout.activation)
        return act((self.gate_proj if self.gated else self.up_proj)(x))

    def channels(self, x: Tensor) -> Tensor:
        """What down_proj reads for a normed input, (..., P)."""
        opened = self.opened(x)
        return opened * self.up_proj(x) if self.gated else opened

    def feed(self, x: Tensor) -> Tensor:
        """The MLP's output for a normed input."""
        return self.mlp(x) if self.layout.experts else self.down_proj(self.channels(x))

    def run(self, part: str, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The output of the attention or the MLP for a normed input."""
        return self.attend(x, arguments) if part == ATTENTION else self.feed(x)

    def read(self, before: Tensor, behind: Tensor) -> Tensor:
        """Which stream the MLP reads: that before the block, or that behind its attention."""
        return before if self.layout.parallel else behind


def of_batch(arguments: Mapping[str, Any], size: int) -> Mapping[str, Any]:
    """Keywords for one window as they are for a batch of this size."""
    biases = arguments.get("alibi")
    if biases is not None and biases.dim() == 3:  # (heads, 1, length), which do not broadcast over a batch
        return {**arguments, "alibi": biases.repeat(size, 1, 1)}
    return arguments


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, in order."""
    path = layout_of(model.config).layers
    try:
        return cast(nn.ModuleList, model.get_submodule(path))
    except AttributeError as error:
        raise InputError(f"{type(model).__name__} has no decoder layers at {path}") from error


def layers_of(model: PreTrainedModel) -> list[Layer]:
    """The same under names that all families share."""
    layout = layout_of(model.config)
    return [Layer(block, layout) for block in blocks_of(model)]
