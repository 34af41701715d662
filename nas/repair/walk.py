"""A walk through a parent, front to back, cutting module by module with what each step is given to do.

What published systems do to a module (reconstruct it, choose its units anew, compensate for the cut) are
steps of the same walk: functions of a `Visit` that change its module in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.calibration import GramSum
from nas.families import ATTENTION, MLP, Layer, layers_of
from nas.placement import device_of, owned, placement_of, resident, working
from nas.ranking import reorder_channels, reorder_heads
from nas.repair.stream import Stream, attention_part, input_of, mlp_part
from nas.shape import Shape, check_fits
from nas.subnet import ChannelOrders, RotaryOrders, cut, inside_heads, kept_query_rows


@dataclass(frozen=True)
class Visit:
    """One module on the walk, still whole, before it is cut.

    `block` is what its block will keep, `kept` the columns of the module's output matrix that the cut will
    keep, as it stands, `layer` the block of the copy that is being pruned, which steps
    change, `source` the parent's. `normed` and `dense_normed` are the module's normed inputs in batches
    (batch, seq_len, hidden), behind the predecessors as already cut and in the parent. `run` and `dense_run`
    compute the module from such an input; an attention gets the block's `arguments` beside it.
    """

    shape: Shape
    block: Block
    kept: Tensor
    is_attention: bool
    layer: Layer
    source: Layer
    normed: Sequence[Tensor]
    dense_normed: Sequence[Tensor]
    arguments: Mapping[str, Any]

    def run(self, x: Tensor) -> Tensor:
        """The module's output (batch, seq_len, hidden) as it is now."""
        return self._run(self.layer, x)

    def dense_run(self, x: Tensor) -> Tensor:
        """The parent's module's output."""
        return self._run(self.source, x)

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        return layer.run(self.part, x, self.arguments)

    @property
    def part(self) -> str:
        """Which of a block's two modules it is."""
        return ATTENTION if self.is_attention else MLP

    @property
    def inputs(self) -> tuple[nn.Linear, ...]:
        """The projections that read the normed input."""
        return self.layer.inputs(self.part)

    @property
    def output(self) -> nn.Linear:
        """The output matrix."""
        return self.layer.output(self.part)

    def states(self) -> list[Tensor]:
        """Inputs of the output matrix, batch by batch, from the module as it is now."""
        return [input_of(self.output, self.run, x) for x in self.normed]

    def gram(self) -> Tensor:
        """The mean outer product of `states`, (n, n) in float64."""
        gram = GramSum()
        for h in self.states():
            gram.add(h)
        return gram.mean

    def reorder(self, order: Tensor, queries: Tensor | None = None) -> None:
        """Put the units into an order, the module's KV groups with their queries or its channels."""
        if self.is_attention:
            assert queries is not None
            reorder_heads(self.layer, self.shape, order, queries)
        else:
            reorder_channels(self.layer, order)


Step = Callable[[Visit], None]


@torch.no_grad()
def walk(
    parent: PreTrainedModel,
    shape: Shape,
    architecture: Architecture,
    dense: Stream,
    steps: Sequence[Step],
    *,
    untouched: frozenset[int] = frozenset(),
    rotary: RotaryOrders | None = None,
    channels: ChannelOrders | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> PreTrainedModel:
    """The subnet, as a model of its own: every kept module of the parent gets all `steps` in turn, is then
    cut to its first units, and passes the stream on. Blocks in `untouched` are cut without steps.

    With `rotary` or `channels` the units that are kept are given by orders, as in `cut`, and steps must not
    reorder. All statistics come from the windows of `dense`, the parent's stream, behind the already cut
    predecessors. The parent is left as it is; `progress` is told of each finished block.
    """
    check_fits(architecture, shape)
    placement, device = placement_of(parent), device_of(parent)
    model = owned(parent).requires_grad_(False)
    layers, sources = layers_of(model), layers_of(parent)
    own = dense.before(0)
    for block in architecture.blocks:
        layer, source = layers[block.source], sources[block.source]
        if layer.layout.experts:
            raise InputError("mixtures of experts are not pruned on a walk yet; choose another repair")
        arguments = dense.arguments[block.source]

        def visit(
            is_attention: bool, own: Sequence[Tensor], before: Sequence[Tensor],
            block: Block = block, layer: Layer = layer, source: Layer = source,
            arguments: Mapping[str, Any] = arguments,
        ) -> None:  # fmt: skip
            part = ATTENTION if is_attention else MLP
            seen = Visit(
                shape, block, _kept(shape, block, is_attention, rotary, channels, device),
                is_attention, layer, source,
                normed=dense.keep(layer.norm(part, h) for h in own),
                dense_normed=dense.keep(source.norm(part, h) for h in before),
                arguments=arguments,
            )  # fmt: skip
            for step in steps if block.source not in untouched else ():
                step(seen)

        entry, parallel = own, layer.layout.parallel
        before = dense.before(block.source)
        middle = dense.middle(block.source) if block.ffn and not parallel else before
        with resident(source.module, device), working(layer.module, placement):
            if block.kv_groups:
                visit(True, own, before)
                cut_layer = _alone(model, shape, block, rotary, channels)
                own = dense.keep(attention_part(cut_layer, h, arguments) for h in own)
            if block.ffn:
                visit(False, entry if parallel else own, middle)
                cut_layer = _alone(model, shape, block, rotary, channels)
                own = dense.keep(mlp_part(cut_layer, h, before) for h, before in zip(own, entry, strict=True))
        progress(1)
    return cut(model, shape, architecture, rotary=rotary, channels=channels, own=True)


def _kept(
    shape: Shape,
    block: Block,
    is_attention: bool,
    rotary: RotaryOrders | None,
    channels: ChannelOrders | None,
    device: torch.device,
) -> Tensor:
    """The columns of an output matrix that the cut keeps."""
    if not is_attention:
        return (
            torch.arange(block.ffn, device=device)
            if channels is None
            else channels[block.source][: block.ffn].to(device)
        )
    columns = kept_query_rows(shape, block, device)
    if not block.head_width or rotary is None:
        return columns
    pairs = rotary[block.source][: block.kv_groups, : block.head_width // 2].to(device)
    return columns[inside_heads(shape, pairs, block.queries_per_group)]


def _alone(
    model: PreTrainedModel,
    shape: Shape,
    block: Block,
    rotary: RotaryOrders | None,
    channels: ChannelOrders | None,
) -> Layer:
    """One block of the model as the architecture wants it."""
    full = (shape.kv_groups, shape.queries_per_group)
    kept = block if block.kv_groups else Block(block.source, *full, block.ffn)  # a model needs attention
    alone = Architecture(shape.hidden, (kept,))
    return layers_of(cut(model, shape, alone, rotary=rotary, channels=channels))[0]
