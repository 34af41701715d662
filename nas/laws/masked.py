"""The law to compare cuts with: a whole parent with everything that an architecture drops at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.families import layers_of
from nas.shape import Shape


def zeroed(parent: PreTrainedModel, shape: Shape, architecture: Architecture) -> PreTrainedModel:
    """The permuted parent, whole, with everything that the architecture drops set to zero on its way; of
    hidden channels where they are written."""
    model = copy.deepcopy(parent)
    kept = {block.source: block for block in architecture.blocks}
    if architecture.hidden < shape.hidden:
        _zero_stream(model, shape.hidden, architecture.hidden)
    for index, layer in enumerate(layers_of(model)):
        if index not in kept:
            layer.module.register_forward_hook(_skip_block)
            continue
        block = kept[index]
        heads = torch.zeros(shape.kv_groups, shape.queries_per_group, shape.head_dim)
        heads[: block.kv_groups, : block.queries_per_group] = 1
        layer.o_proj.register_forward_pre_hook(times(heads.flatten()))
        if layer.layout.experts:
            layer.mlp.gate.register_forward_hook(_without_experts(layer.mlp.gate, block.ffn))
        else:
            layer.down_proj.register_forward_pre_hook(times((torch.arange(shape.ffn) < block.ffn).float()))
        if not block.kv_groups:
            layer.attention.register_forward_hook(_skip_attention)
        if not block.ffn:
            (layer.mlp if layer.layout.mlp else layer.down_proj).register_forward_hook(_skip_mlp)
    return model


def times(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """A hook that multiplies a module's input."""
    return lambda _, args: args[0] * mask.to(args[0].device)


def _zero_stream(model: PreTrainedModel, whole: int, hidden: int) -> None:
    mask = (torch.arange(whole) < hidden).float()
    writers = [model.get_input_embeddings()]
    for layer in layers_of(model):
        writers += [layer.o_proj, layer.mlp if layer.layout.experts else layer.down_proj]
    for writer in writers:
        writer.register_forward_hook(lambda _, args, output: output * mask.to(output.device))


def _skip_block(_: nn.Module, args: tuple[Tensor, ...], output: object) -> object:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


def _skip_attention(
    _: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]
) -> tuple[Tensor, None]:
    return (args[1] if len(args) > 1 else output[0] * 0), None  # bloom's adds the stream itself


def _skip_mlp(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return args[1] if len(args) > 1 else output * 0


def _without_experts(gate: nn.Module, kept: int) -> Callable[..., object]:
    """A hook on a router that lets no token visit the experts behind the first ones."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: object) -> object:
        logits = args[0].reshape(-1, args[0].shape[-1]) @ gate.weight.T
        logits[:, max(kept, gate.top_k) :] = -torch.inf
        best, index = logits.float().softmax(-1).topk(gate.top_k, dim=-1)
        if getattr(gate, "norm_topk_prob", True):
            best = best / best.sum(-1, keepdim=True)
        return logits, best.to(logits.dtype), index

    return hook
