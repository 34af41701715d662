"""Low-rank adapters beside projections, that are cut with them: for training that leaves the weights alone.

Hu et al., arXiv 2106.09685: a projection W becomes W + (alpha / r) B A, with A (r, in) random and B (out, r)
zero at the start. Of a cut projection, A keeps the columns and B the rows that W keeps. peft's adapters sit
in modules of their own, which no cut knows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from data.errors import InputError
from nas.families import layers_of


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


class AdaptedEmbedding(nn.Embedding):
    """Embeddings with their adapter: `down` is A (rank, hidden), `up` B (vocab, rank)."""

    down: Tensor
    up: Tensor
    scale: float

    def forward(self, input: Tensor) -> Tensor:
        """The rows of W + scale · B A."""
        return super().forward(input) + self.scale * functional.embedding(input, self.up) @ self.down


def adapt(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    *,
    ends: bool = False,
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Give every projection of every block, changed in place, an adapter; with `ends` embeddings and head
    too, which have one together where they are tied.

    Returns the adapters' parameters in float32, the only ones of the model that ask for gradients afterwards;
    the model computes what it did before. Raises `InputError` for a rank below 1.
    """
    if rank < 1:
        raise InputError(f"the adapters' rank is {rank}; give 1 or more")
    model.requires_grad_(False)
    parameters: list[nn.Parameter] = []

    def give(module: nn.Module, kind: type[nn.Module], within: int, out: int) -> None:
        module.__class__ = kind
        # As torch and peft draw a projection: uniform with variance 1 / (3 in).
        start = torch.empty(rank, within)
        nn.init.uniform_(start, -(within**-0.5), within**-0.5, generator=generator)
        module.down = nn.Parameter(start.to(module.weight.device))
        module.up = nn.Parameter(torch.zeros(out, rank, device=module.weight.device))
        module.scale, module.dropout = alpha / rank, dropout
        parameters.extend((module.down, module.up))

    for layer in layers_of(model):
        for _, linear in layer.projections():
            give(linear, Adapted, linear.in_features, linear.out_features)
    if ends:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embedding.weight
        give(embedding, AdaptedEmbedding, embedding.embedding_dim, embedding.num_embeddings)
        if tied:
            head.__class__ = Adapted
            head.down, head.up, head.scale, head.dropout = embedding.down, embedding.up, alpha / rank, 0.0
        else:
            give(head, Adapted, head.in_features, head.out_features)
    return parameters


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place, with its adapters added to its weights: plain modules again."""
    done: set[int] = set()
    for module in model.modules():
        if isinstance(module, Adapted | AdaptedEmbedding):
            if id(module.weight) not in done:  # a tied weight has one adapter
                module.weight += module.scale * (module.up @ module.down).to(module.weight.dtype)
                done.add(id(module.weight))
            module.__class__ = nn.Linear if isinstance(module, Adapted) else nn.Embedding
            for name in ("down", "up", "scale", "dropout"):
                delattr(module, name)
    return model
