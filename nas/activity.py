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
from nas.families import MLP, Layer, layers_of
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


class _Watch:
    """Sees what flows through one block while it runs."""

    def __init__(self, layer: Layer, head_dim: int) -> None:
        if layer.layout.experts:
            raise InputError(
                "the activity of experts, which are in place of FFN channels, is not measured; choose "
                "another criterion or system"
            )
        self._grams, self._means = (GramSum(), GramSum()), (_Mean(), _Mean(), _Mean(), _Mean())
        (read, fed), (attention, ffn, norm, magnitude) = self._grams, self._means
        self._hooks = [
            module.register_forward_pre_hook(partial(_first, see))
            for module, see in (
                (layer.q_proj, read.add),
                (layer.inputs(MLP)[0], fed.add),
                (layer.o_proj, partial(_see_heads, attention, norm, head_dim)),
                (layer.down_proj, partial(_see_channels, ffn, magnitude)),
            )
        ]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> BlockActivity:
        return BlockActivity(*(gram.take() for gram in self._grams), *(mean.value for mean in self._means))


@torch.no_grad()
def measure_activity(
    parent: PreTrainedModel, shape: Shape, windows: Tensor, *, batch_size: int = 8
) -> tuple[BlockActivity, ...]:
    """Run the parent over `windows` (n, seq_len), once; `InputError` for a mixture of experts."""
    watches = [_Watch(layer, shape.head_dim) for layer in layers_of(parent)]
    try:
        for batch in windows.split(batch_size):
            parent.base_model(batch.to(parent.device), use_cache=False)
    finally:
        for watch in watches:
            watch.end()
    return tuple(watch.take() for watch in watches)


def block_activity(layer: Layer, shape: Shape, run: Callable[[], object]) -> BlockActivity:
    """The activity of one block alone, which `run()` sends all windows through."""
    watch = _Watch(layer, shape.head_dim)
    try:
        run()
    finally:
        watch.end()
    return watch.take()
