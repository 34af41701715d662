"""Front-to-back repair: every module corrects the errors that were made before it, by least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture
from nas.calibration import GramSum
from nas.families import blocks_of, family_of
from nas.linear import ridge
from nas.repair.channels import refit_channels
from nas.repair.stream import Stream, input_of, join
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
    `progress` is told of each finished block. Raises `InputError` for a narrower hidden width and for heads
    that are kept in part: neither has a dense target yet.
    """
    if architecture.hidden < shape.hidden or any(block.head_width for block in architecture.blocks):
        raise InputError(
            f"a hidden width of {architecture.hidden} of {shape.hidden}, or heads kept in part, cannot be "
            "repaired front to back; keep both whole, or cut without this repair"
        )
    subnet = cut(parent, shape, architecture, bank, own=True)
    family = family_of(parent.config)
    own = dense.before(0)
    followers = [*architecture.blocks[1:], None]
    for block, layer, follower in zip(architecture.blocks, blocks_of(subnet), followers, strict=True):
        source, arguments = blocks_of(parent)[block.source], dense.arguments[block.source]
        before, middle = dense.before(block.source), dense.middle(block.source)
        if follower is None:
            behind = dense.before(shape.blocks)
        else:
            behind = dense.before(follower.source) if follower.kv_groups else dense.middle(follower.source)
        if block.kv_groups:
            attention = layer.self_attn

            own = _repair_module(
                layer, own, _caller(attention, arguments),
                inputs=(attention.q_proj, attention.k_proj, attention.v_proj),
                output=attention.o_proj,
                norms=(family.attention_pre, family.attention_post),
                dense=(source, before),
                target=middle if block.ffn else behind,
                dense_output=_caller(source.self_attn, arguments),
                damping=damping,
                refit=partial(refit_values, attention, arguments, damping=damping.values),
            )  # fmt: skip
        if block.ffn:
            mlp = layer.mlp
            own = _repair_module(
                layer, own, mlp,
                inputs=(mlp.gate_proj, mlp.up_proj),
                output=mlp.down_proj,
                norms=(family.mlp_pre, family.mlp_post),
                dense=(source, middle),
                target=behind,
                dense_output=source.mlp,
                damping=damping,
                refit=partial(
                    refit_channels, mlp, damping=damping.channels, output_damping=damping.outputs
                ),
            )  # fmt: skip
        progress(1)
    return subnet


def _caller(attention: nn.Module, arguments: Mapping[str, Any]) -> Callable[[Tensor], Any]:
    """An attention as a function of its normed input alone."""
    return lambda x: attention(hidden_states=x, **arguments)


def _repair_module(
    layer: nn.Module,
    own: Sequence[Tensor],
    run: Callable[[Tensor], Any],
    *,
    inputs: Iterable[nn.Linear],
    output: nn.Linear,
    norms: tuple[str, str | None],
    dense: tuple[nn.Module, Sequence[Tensor]],
    target: Sequence[Tensor],
    dense_output: Callable[[Tensor], Any],
    damping: Damping,
    refit: Callable[[list[Tensor], list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Repair one module of `layer` in place and return the subnet's stream behind it, batch by batch."""
    pre, post = norms
    norm = getattr(layer, pre)
    source, dense_before = dense
    gram, cross = GramSum(), GramSum()
    normed = [norm(mine) for mine in own]
    for x, theirs in zip(normed, dense_before, strict=True):
        gram.add(x)
        cross.add(getattr(source, pre)(theirs), x)
    eye = torch.eye(gram.mean.shape[0], dtype=torch.float64, device=gram.mean.device)
    correction = ridge(gram.mean, cross.mean, eye, damping.inputs)
    for linear in inputs:
        linear.weight.data = (linear.weight.double() @ correction).to(linear.weight.dtype)
    wanted = _wanted(layer, post, own, target, source, pre, dense_before, dense_output)
    if output.bias is not None:
        wanted = [goal - output.bias.float() for goal in wanted]
    gram, cross = GramSum(), GramSum()
    for x, goal in zip(normed, wanted, strict=True):
        h = input_of(output, run, x)
        gram.add(h)
        cross.add(goal, h)
    fitted = ridge(gram.mean, cross.mean, output.weight.double(), damping.outputs)
    output.weight.data = fitted.to(output.weight.dtype)
    if refit is not None:
        weight = output.weight.float()
        left = [
            goal - input_of(output, run, x).float() @ weight.T for x, goal in zip(normed, wanted, strict=True)
        ]
        refit(normed, left)
    return [join(layer, post, h, output(input_of(output, run, x))) for h, x in zip(own, normed, strict=True)]


def _wanted(
    layer: nn.Module,
    post: str | None,
    own: Sequence[Tensor],
    target: Sequence[Tensor],
    source: nn.Module,
    pre: str,
    dense_before: Sequence[Tensor],
    dense_output: Callable[[Tensor], Any],
) -> list[Tensor]:
    """What the module's output should be, batch by batch, in float32."""
    if post is None:
        multiplier = getattr(layer, "residual_multiplier", 1.0)
        return [(goal.float() - mine.float()) / multiplier for goal, mine in zip(target, own, strict=True)]
    outputs = (dense_output(getattr(source, pre)(h)) for h in dense_before)
    return [(out[0] if isinstance(out, tuple) else out).float() for out in outputs]
