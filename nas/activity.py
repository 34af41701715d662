"""What flows through each block on calibration text, beyond the Gram matrices of `nas.calibration`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.calibration import GramSum
from nas.families import MLP, layers_of
from nas.shape import Shape


@dataclass(frozen=True)
class BlockActivity:
    """Means over all tokens of one block, float64.

    `attention_input_gram` and `mlp_input_gram` (hidden, hidden): outer products of what the projections of
    the attention and the MLP read. `attention_mean` (H*D,) and `ffn_mean` (P,): inputs of o_proj and
    down_proj. `head_norm` (H,): the Euclidean norm of each head's output before o_proj; `channel_magnitude`
    (P,): the absolute value of each channel before down_proj.
    """

    attention_input_gram: Tensor
    mlp_input_gram: Tensor
    attention_mean: Tensor
    ffn_mean: Tensor
    head_norm: Tensor
    channel_magnitude: Tensor


class _Mean:
    """A running mean over tokens, in float64."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def add(self, rows: Tensor) -> None:
        self.total = self.total.to(rows.device) + rows.double().sum(0)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        return self.total / self.count


def _first(see: Callable[[Tensor], None], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    see(args[0])


def _see_heads(mean: _Mean, norm: _Mean, head_dim: int, states: Tensor) -> None:
    rows = states.flatten(0, -2).float()
    mean.add(rows)
    norm.add(rows.view(len(rows), -1, head_dim).norm(dim=-1))


def _see_channels(mean: _Mean, magnitude: _Mean, states: Tensor) -> None:
    rows = states.flatten(0, -2).float()
    mean.add(rows)
    magnitude.add(rows.abs())


@torch.no_grad()
def measure_activity(
    parent: PreTrainedModel, shape: Shape, windows: Tensor, *, batch_size: int = 8
) -> tuple[BlockActivity, ...]:
    """Run the parent over `windows` (n, seq_len), once; `InputError` for a mixture of experts."""
    if shape.experts_per_token:
        raise InputError(
            f"{shape.family} has {shape.ffn} experts in place of FFN channels, whose activity is not "
            "measured; choose another criterion or system"
        )
    layers = layers_of(parent)
    grams = [(GramSum(), GramSum()) for _ in layers]
    means = [(_Mean(), _Mean(), _Mean(), _Mean()) for _ in layers]
    hooks = []
    for layer, (read, fed), (attention, ffn, norm, magnitude) in zip(layers, grams, means, strict=True):
        for module, see in (
            (layer.q_proj, read.add),
            (layer.inputs(MLP)[0], fed.add),
            (layer.o_proj, partial(_see_heads, attention, norm, shape.head_dim)),
            (layer.down_proj, partial(_see_channels, ffn, magnitude)),
        ):
            hooks.append(module.register_forward_pre_hook(partial(_first, see)))
    try:
        for batch in windows.split(batch_size):
            parent.base_model(batch.to(parent.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        BlockActivity(*(gram.take() for gram in pair), *(mean.value for mean in four))
        for pair, four in zip(grams, means, strict=True)
    )
