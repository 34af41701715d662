"""One streaming pass over calibration text: the statistics that rankings and repairs are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nas.families import Layer, layers_of
from nas.families.experts import contributions


@dataclass(frozen=True)
class Statistics:
    """Per block, over all calibration tokens.

    `attention_gram` (H*D, H*D) and `ffn_gram` (P, P) are mean outer products of the inputs of o_proj and
    down_proj, in float64; of a mixture of P experts, `ffn_gram` holds the mean inner products of what they
    add to the stream; `influence` is 1 - mean cosine between a block's input and output (ShortGPT's
    block influence, larger is more important); `tokens` is how many were seen.
    """

    attention_gram: Sequence[Tensor]
    ffn_gram: Sequence[Tensor]
    influence: Sequence[float]
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
        product = left.T @ right
        self.total = product.double() if self.total is None else self.total.add_(product)
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


class Watch:
    """Sees what flows through one block while it runs: sums from which its part of `Statistics` is taken."""

    def __init__(self, layer: Layer) -> None:
        self._attention, self._ffn, self._cosine = GramSum(), GramSum(), 0.0
        self._hooks = [layer.o_proj.register_forward_pre_hook(lambda _, args: self._attention.add(args[0]))]
        if layer.layout.experts:
            self._hooks.append(watch_experts(layer.mlp.experts, self._ffn))
        else:
            add = self._ffn.add
            self._hooks.append(layer.down_proj.register_forward_pre_hook(lambda _, args: add(args[0])))
        self._hooks.append(layer.module.register_forward_hook(self._compare))

    def _compare(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        behind = output[0] if isinstance(output, tuple) else output
        similar = functional.cosine_similarity(args[0].float(), behind.float(), dim=-1)
        self._cosine += float(similar.double().sum())

    def end(self) -> None:
        """See no more."""
        for hook in self._hooks:
            hook.remove()

    def take(self) -> tuple[Tensor, Tensor, float, int]:
        """`attention_gram`, `ffn_gram`, `influence` and `tokens` of the block; the sums are then empty."""
        tokens = self._attention.count
        return self._attention.take(), self._ffn.take(), 1.0 - self._cosine / tokens, tokens


@torch.no_grad()
def calibrate(
    parent: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> Statistics:
    """Run the parent over `windows` (n, seq_len); `progress` is told how many windows each batch had."""
    watches = [Watch(layer) for layer in layers_of(parent)]
    try:
        for batch in windows.split(batch_size):
            parent.base_model(batch.to(parent.device), use_cache=False)
            progress(len(batch))
    finally:
        for watch in watches:
            watch.end()
    attention, ffn, influence, tokens = zip(*(watch.take() for watch in watches), strict=True)
    return Statistics(attention, ffn, influence, tokens[0])


def calibrate_block(layer: Layer, run: Callable[[], object]) -> Statistics:
    """Statistics of one block alone, which `run()` sends all windows through."""
    watch = Watch(layer)
    try:
        run()
    finally:
        watch.end()
    attention, ffn, influence, tokens = watch.take()
    return Statistics((attention,), (ffn,), (influence,), tokens)
