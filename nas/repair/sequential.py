"""Front-to-back repair: every module corrects the errors that were made before it, by least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.calibration import GramSum
from nas.families import ATTENTION, MLP, Layer, family_of, layers_of
from nas.linear import ridge
from nas.placement import Keep, device_of, placement_of, resident, working
from nas.repair.channels import refit_channels
from nas.repair.stream import Stream, input_of, mlp_part
from nas.repair.values import refit_values
from nas.shape import Shape
from nas.subnet import OutputMatrices, cut


@dataclass(frozen=True)
class Damping:
    """Ridge terms relative to the mean diagonal of the input's Gram matrix.

    `inputs` pulls the input correction towards the identity, `outputs` the output matrix towards its one-pass
    repair, `values` the heads' value-output products towards what they are, `channels` the gates and
    up-projections.
    """

    inputs: float = 1e-1
    outputs: float = 1e-2
    values: float = 1e-2
    channels: float = 1e-1


@torch.no_grad()
def repair_front_to_back(
    parent: PreTrainedModel,
    shape: Shape,
    architecture: Architecture,
    bank: OutputMatrices,
    dense: Stream,
    *,
    damping: Damping = Damping(),
    progress: Callable[[int], object] = lambda done: None,
) -> PreTrainedModel:
    """The subnet, as a copy of its own, repaired against `dense`, the permuted parent's stream.

    Module by module, with all statistics from the subnet's own, already repaired predecessors:

    - the input projections are multiplied by one linear map that leads the subnet's normed input back to the
      dense one, min ||A x - x_dense||^2 + damping ||A - I||^2;
    - the output matrix is refitted to what is missing from the dense residual stream behind the module,
      min ||W h - (dense stream behind - own stream before)||^2 + damping ||W - W_one_pass||^2, so that errors
      made upstream are corrected, not inherited. Where the next parts of the parent are left out, "behind"
      is behind those too: the module then stands in for them as far as a linear map can;
    - an attention's values and output columns are then refitted together (`nas.repair.values`), and so are
      an MLP's gates, up-projections and output columns (`nas.repair.channels`).

    In families that norm a module's output before adding it the target is the dense module's own output.
    Values are left as they are where an attention's patterns cannot be asked for (`Family.by_interface`), and
    so are mixtures of experts, which have no output matrix of their own.
    `progress` is told of each finished block. Raises `InputError` for a narrower hidden width and for heads
    that are kept in part: neither has a dense target yet.
    """
    if architecture.hidden < shape.hidden or any(block.head_width for block in architecture.blocks):
        raise InputError(
            f"a hidden width of {architecture.hidden} of {shape.hidden}, or heads kept in part, cannot be "
            "repaired front to back; keep both whole, or cut without this repair"
        )
    subnet = cut(parent, shape, architecture, bank, own=True)
    by_interface, placement = family_of(parent.config).by_interface, placement_of(parent)
    own, sources = dense.before(0), layers_of(parent)
    followers = [*architecture.blocks[1:], None]
    for block, layer, follower in zip(architecture.blocks, layers_of(subnet), followers, strict=True):
        source, arguments = sources[block.source], dense.arguments[block.source]
        before, middle = dense.before(block.source), dense.middle(block.source)
        if follower is None:
            behind = dense.before(shape.blocks)
        else:
            behind = dense.before(follower.source) if follower.kv_groups else dense.middle(follower.source)
        with resident(source.module, device_of(parent)), working(layer.module, placement):
            own = _repair_block(
                layer, block, own, arguments,
                dense=(source, before, middle, behind),
                damping=damping,
                values=by_interface,
                keep=dense.keep,
            )  # fmt: skip
        progress(1)
    return subnet


def _repair_block(
    layer: Layer,
    block: Block,
    own: Sequence[Tensor],
    arguments: Mapping[str, Any],
    *,
    dense: tuple[Layer, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    damping: Damping,
    values: bool,
    keep: Keep,
) -> Sequence[Tensor]:
    """Repair both modules of `layer` in place and return the subnet's stream behind it, batch by batch.

    `dense` is the parent's block with its stream before it, behind its attention, and where this block's
    output is to lead; `values` says whether those of the attention are refitted.
    """
    source, before, middle, behind = dense
    entry, parallel = own, layer.layout.parallel
    if block.kv_groups:
        own = _repair_module(
            layer, ATTENTION, own, own, arguments,
            dense=(source, before),
            target=middle if block.ffn else behind,
            damping=damping,
            refit=partial(refit_values, layer, arguments, damping=damping.values) if values else None,
            keep=keep,
        )  # fmt: skip
    if block.ffn and layer.layout.experts:
        return keep(mlp_part(layer, h, b) for h, b in zip(own, entry, strict=True))
    if block.ffn:
        own = _repair_module(
            layer, MLP, own, entry if parallel else own, {},
            dense=(source, before if parallel else middle),
            target=behind,
            damping=damping,
            refit=partial(
                refit_channels, layer, damping=damping.channels, output_damping=damping.outputs, keep=keep
            ),
            keep=keep,
        )  # fmt: skip
    return own


def _repair_module(
    layer: Layer,
    part: str,
    own: Sequence[Tensor],
    read: Sequence[Tensor],
    arguments: Mapping[str, Any],
    *,
    dense: tuple[Layer, Sequence[Tensor]],
    target: Sequence[Tensor],
    damping: Damping,
    refit: Callable[[Sequence[Tensor], Sequence[Tensor]], object] | None,
    keep: Keep,
) -> Sequence[Tensor]:
    """Repair one module of `layer` in place and return the subnet's stream behind it, batch by batch.

    `own` is the stream that it adds to, `read` the one that it reads: another one where the MLP runs beside
    the attention. `dense` is the parent's block and what the module reads there.
    """
    output = layer.output(part)

    def run(x: Tensor) -> Tensor:
        return layer.run(part, x, arguments)

    source, dense_read = dense
    gram, cross = GramSum(), GramSum()
    normed = keep(layer.norm(part, mine) for mine in read)
    for x, theirs in zip(normed, dense_read, strict=True):
        gram.add(x)
        cross.add(source.norm(part, theirs), x)
    mean = gram.take()
    eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    correction = ridge(mean, cross.take(), eye, damping.inputs)
    del mean, eye
    for linear in layer.inputs(part):
        linear.weight.data = (linear.weight.double() @ correction).to(linear.weight.dtype)
    bias = 0.0 if output.bias is None else output.bias.float()
    goals = _wanted(layer, part, own, target, source, dense_read, arguments)
    wanted = keep(goal - bias for goal in goals)
    gram, cross = GramSum(), GramSum()
    for x, goal in zip(normed, wanted, strict=True):
        h = input_of(output, run, x)
        gram.add(h)
        cross.add(goal, h)
    fitted = ridge(gram.take(), cross.take(), output.weight.double(), damping.outputs)
    output.weight.data = fitted.to(output.weight.dtype)
    del fitted
    if refit is not None:
        weight = output.weight.float()
        left = keep(
            goal - input_of(output, run, x).float() @ weight.T for x, goal in zip(normed, wanted, strict=True)
        )
        refit(normed, left)
    return keep(
        layer.join(part, h, output(input_of(output, run, x))) for h, x in zip(own, normed, strict=True)
    )


def _wanted(
    layer: Layer,
    part: str,
    own: Sequence[Tensor],
    target: Sequence[Tensor],
    source: Layer,
    dense_read: Sequence[Tensor],
    arguments: Mapping[str, Any],
) -> Iterator[Tensor]:
    """What the module's output should be, batch by batch, in float32."""
    post = layer.layout.attention_post if part == ATTENTION else layer.layout.mlp_post
    if not post:
        multiplier = getattr(layer.module, "residual_multiplier", 1.0)
        return ((goal.float() - mine.float()) / multiplier for goal, mine in zip(target, own, strict=True))
    return (source.run(part, source.norm(part, h), arguments).float() for h in dense_read)
