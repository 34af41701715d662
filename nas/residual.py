"""Order the residual stream of a parent once, so that every narrower hidden width is a prefix of it.

There are two ways, both leaving the logits as they are up to rounding. A permutation puts the most active
hidden channels first (arXiv 2410.06479; the order of arXiv 2407.14679). A rotation onto the principal
directions of what the norms see folds the norms' gains into the projections behind them, for RMSNorm commutes
with rotations only without gains (arXiv 2401.15024, theorem 1); with one rotation for the whole stream no
residual connection needs a matrix of its own, and the rotated parent is a plain model of its family.

A tied head takes part in a permutation as it is. A rotation unties it: embeddings E would become E Q, the
head E diag(g) Q with the final gains g, and Q^T diag(g) Q is no diagonal that the norm could keep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.calibration import GramSum
from nas.families import ATTENTION, MLP, family_of, layers_of


@dataclass(frozen=True)
class StreamStatistics:
    """What the norms over the residual stream see, over all calibration tokens, in float64.

    `activation` (hidden,) is the mean of |norm output|, summed over the norms; `gram` (hidden, hidden) the
    mean outer product of the normed stream before the gains, averaged over the norms.
    """

    activation: Tensor
    gram: Tensor

    @property
    def order(self) -> Tensor:
        """Hidden channels, most active first, (hidden,)."""
        return self.activation.argsort(descending=True, stable=True)

    @property
    def basis(self) -> Tensor:
        """Principal directions as columns, that of the largest variance first, (hidden, hidden)."""
        return torch.linalg.eigh(self.gram).eigenvectors.flip(1)


@torch.no_grad()
def measure_stream(
    parent: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> StreamStatistics:
    """Run the parent over `windows` (n, seq_len); `progress` is told how many windows each batch had.

    Raises `InputError` for a family whose hidden width cannot be cut.
    """
    family_of(parent.config).check_narrowable()
    activation = torch.zeros(parent.config.hidden_size, dtype=torch.float64, device=parent.device)
    gram = GramSum()

    def hook(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        stream = args[0].float()
        gram.add(stream * (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt())
        activation.add_(output.float().abs().flatten(0, -2).sum(0))

    hooks = [norm.register_forward_hook(hook) for norm, _ in _readers(parent)]
    try:
        for batch in windows.split(batch_size):
            parent.base_model(batch.to(parent.device), use_cache=False)
            progress(len(batch))
    finally:
        for handle in hooks:
            handle.remove()
    return StreamStatistics(activation / windows.numel(), gram.take())


@torch.no_grad()
def permute_stream(parent: PreTrainedModel, order: Tensor) -> PreTrainedModel:
    """A copy of the parent with its hidden channels in this order (hidden,)."""
    return _transformed(parent, lambda weight: weight[..., order], fold=False)


@torch.no_grad()
def rotate_stream(parent: PreTrainedModel, basis: Tensor) -> PreTrainedModel:
    """A copy of the parent whose hidden channels are the columns of `basis` (hidden, hidden), orthogonal.

    Its norms have gains of one. A tied head becomes a matrix of its own, which the copy's shape counts.
    """
    return _transformed(parent, lambda weight: weight.double() @ basis, fold=True)


def _transformed(
    parent: PreTrainedModel, change: Callable[[Tensor], Tensor], *, fold: bool
) -> PreTrainedModel:
    """A copy whose tensors over the hidden channels (..., hidden) are changed; gains too, unless folded."""
    family_of(parent.config).check_narrowable()
    new = copy.deepcopy(parent).requires_grad_(False)
    embedding, head = new.model.embed_tokens, new.lm_head
    tied = head.weight is embedding.weight
    if tied and fold:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
        new.config.tie_word_embeddings = tied = False
    _set(embedding.weight, change(embedding.weight))
    for norm, matrices in _readers(new):
        for matrix in matrices:
            if matrix is not head.weight or not tied:
                _set(matrix, change(matrix.double() * norm.weight.double() if fold else matrix))
        _set(norm.weight, torch.ones_like(norm.weight) if fold else change(norm.weight))
    for norm in _norms_behind(new):
        if fold:
            raise InputError(
                f"a stream of {parent.config.model_type} cannot be rotated, for it has norms behind its "
                "modules, whose gains hold for single channels; permute it"
            )
        _set(norm.weight, change(norm.weight))
    for matrix, bias in _writers(new):
        _set(matrix, change(matrix.transpose(-1, -2)).transpose(-1, -2))
        if bias is not None:
            _set(bias, change(bias))
    return new


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.data = value.to(parameter.dtype).contiguous()


def _readers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Every norm over the residual stream with the matrices (..., hidden) that read it, front to back."""
    for layer in layers_of(model):
        yield (
            getattr(layer.module, layer.layout.attention_pre),
            tuple(linear.weight for linear in layer.inputs(ATTENTION)),
        )
        norm = getattr(layer.module, layer.layout.mlp_pre)
        if layer.layout.experts:
            yield norm, (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj)
        else:
            yield norm, tuple(linear.weight for linear in layer.inputs(MLP))
    yield model.model.norm, (model.lm_head.weight,)


def _norms_behind(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Norms over what a module adds to the stream."""
    for layer in layers_of(model):
        for name in (layer.layout.attention_post, layer.layout.mlp_post):
            if name:
                yield getattr(layer.module, name)


def _writers(model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every matrix (..., hidden, columns) into the residual stream with its bias, front to back."""
    for layer in layers_of(model):
        yield layer.o_proj.weight, layer.o_proj.bias
        if layer.layout.experts:
            yield layer.mlp.experts.down_proj, None
        else:
            yield layer.down_proj.weight, layer.down_proj.bias
