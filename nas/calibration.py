"""One streaming pass over calibration text: the statistics that rankings and repairs are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nas.families import layers_of
from nas.families.experts import contributions


@dataclass(frozen=True)
class Statistics:
    """Per block, over all calibration tokens.

    `attention_gram` (H*D, H*D) and `ffn_gram` (P, P) are mean outer products of the inputs of o_proj and
    down_proj, in float64; of a mixture of P experts, `ffn_gram` holds the mean inner products of what they
    add to the stream; `influence` is 1 - mean cosine between a block's input and output (ShortGPT's
    block influence, larger is more important); `tokens` is how many were seen.
    """

    attention_gram: tuple[Tensor, ...]
    ffn_gram: tuple[Tensor, ...]
    influence: tuple[float, ...]
    tokens: int


class GramSum:
    """A running sum of outer products: products in float32 batch by batch, the sum in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, rows: Tensor, others: Tensor | None = None) -> None:
        """Add rows^T others (rows^T rows by default) of (..., n) activations."""
        left = rows.detach().flatten(0, -2).float()
        right = left if others is None else others.detach().flatten(0, -2).float()
        product = (left.T @ right).double()
        self.total = product if self.total is None else self.total.add_(product)
        self.count += left.shape[0]

    @property
    def mean(self) -> Tensor:
        """(n, m) in float64."""
        if self.total is None:
            raise RuntimeError("no activations were seen")
        return self.total / self.count

    def take(self) -> Tensor:
        """The mean in the sum's own memory; the sum is then empty again."""
        total, count = self.total, self.count
        if total is None:
            raise RuntimeError("no activations were seen")
        self.total, self.count = None, 0
        return total.div_(count)


def watch_experts(experts: nn.Module, gram: GramSum) -> RemovableHandle:
    """Add up the inner products of what experts add to the stream, as they are called."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for outputs in contributions(module, *args):  # (tokens, experts, hidden) of some tokens
            inner = torch.einsum("teh,tfh->ef", outputs.float(), outputs.float()).double()
            gram.total = inner if gram.total is None else gram.total.add_(inner)
            gram.count += len(outputs)

    return experts.register_forward_pre_hook(hook)


@torch.no_grad()
def calibrate(
    parent: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> Statistics:
    """Run the parent over `windows` (n, seq_len); `progress` is told how many windows each batch had."""
    layers = layers_of(parent)
    attention = [GramSum() for _ in layers]
    ffn = [GramSum() for _ in layers]
    cosine = [0.0 for _ in layers]
    hooks = []

    def watch_input(module: nn.Module, gram: GramSum) -> None:
        hooks.append(module.register_forward_pre_hook(lambda _, args: gram.add(args[0])))

    def watch_block(index: int, block: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            behind = output[0] if isinstance(output, tuple) else output
            similar = functional.cosine_similarity(args[0].float(), behind.float(), dim=-1)
            cosine[index] += float(similar.double().sum())

        hooks.append(block.register_forward_hook(hook))

    for index, layer in enumerate(layers):
        watch_input(layer.o_proj, attention[index])
        if layer.layout.experts:
            hooks.append(watch_experts(layer.mlp.experts, ffn[index]))
        else:
            watch_input(layer.down_proj, ffn[index])
        watch_block(index, layer.module)
    try:
        for batch in windows.split(batch_size):
            parent.base_model(batch.to(parent.device), use_cache=False)
            progress(len(batch))
    finally:
        for handle in hooks:
            handle.remove()
    tokens = attention[0].count
    return Statistics(
        attention_gram=tuple(gram.take() for gram in attention),
        ffn_gram=tuple(gram.take() for gram in ffn),
        influence=tuple(1.0 - value / tokens for value in cosine),
        tokens=tokens,
    )
