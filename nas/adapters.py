"""Low-rank adapters beside projections, that are cut with them: for training that leaves the weights alone.

Hu et al., arXiv 2106.09685: a projection W becomes W + (alpha / r) B A, with A (r, in) random and B (out, r)
zero at the start. Of a cut projection, A keeps the columns and B the rows that W keeps. peft's adapters sit
in modules of their own, which no cut knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from data.errors import InputError
from nas.families import PROJECTIONS, blocks_of


class Adapted(nn.Linear):
    """A projection with its adapter: `down` is A (rank, in), `up` B (out, rank), `scale` alpha / rank."""

    down: Tensor
    up: Tensor
    scale: float
    dropout: float

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + scale · dropout(x) A^T B^T, with the bias."""
        low = functional.linear(functional.dropout(input, self.dropout, self.training), self.down)
        return super().forward(input) + self.scale * functional.linear(low, self.up)


def adapt(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    *,
    head: bool = False,
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Give every projection of every block, changed in place, an adapter, and with `head` the head too.

    Returns the adapters' parameters, the only ones of the model that ask for gradients afterwards; the
    model computes what it did before. Raises `InputError` for a rank below 1 and for a tied head.
    """
    if rank < 1:
        raise InputError(f"the adapters' rank is {rank}; give 1 or more")
    if head and model.lm_head.weight is model.model.embed_tokens.weight:
        raise InputError(
            "the head is the embedding matrix, which no adapter can leave; train without its own"
        )
    model.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    for parent, name in [*_projections(model), *([(model, "lm_head")] if head else [])]:
        linear = getattr(parent, name)
        linear.__class__ = Adapted
        start = torch.empty(rank, linear.in_features)
        # As torch and peft draw a projection: uniform with variance 1 / (3 in).
        nn.init.uniform_(start, -(linear.in_features**-0.5), linear.in_features**-0.5, generator=generator)
        like = {"device": linear.weight.device, "dtype": torch.float32}
        linear.down = nn.Parameter(start.to(**like))
        linear.up = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        linear.scale, linear.dropout = alpha / rank, dropout
        parameters += [linear.down, linear.up]
    return parameters


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place, with its adapters added to its weights: plain projections again."""
    for module in model.modules():
        if isinstance(module, Adapted):
            module.weight += module.scale * (module.up @ module.down).to(module.weight.dtype)
            del module.down, module.up, module.scale, module.dropout
            module.__class__ = nn.Linear
    return model


def _projections(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """Each block's projections, by the module that holds them and their name."""
    for block in blocks_of(model):
        for part, names in PROJECTIONS.items():
            for name in names:
                yield getattr(block, part), name
