"""Tiny random models in which every unit matters, texts for them, and random rankings."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nas.ranking import Ranking
from nas.shape import Shape


@torch.no_grad()
def random_model(
    config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of this configuration, as its family builds it, with all weights, norms and biases random, so
    large that every unit matters."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            weight.copy_(noise * (0.5 if "embed" in key else 1.5 / weight.shape[-1] ** 0.5))
        elif key.endswith("bias"):
            weight.copy_(noise * 0.5)
        else:
            weight.add_(noise * 0.3)  # norms: about 1, or about 0 where the family adds the 1 itself
    return model


def random_ranking(shape: Shape, seed: int = 0) -> Ranking:
    """Orders drawn at random."""
    draw = torch.Generator().manual_seed(seed)

    def order(n: int) -> Tensor:
        return torch.randperm(n, generator=draw)

    return Ranking(
        tuple(order(shape.kv_groups) for _ in range(shape.blocks)),
        tuple(
            torch.stack([order(shape.queries_per_group) for _ in range(shape.kv_groups)])
            for _ in range(shape.blocks)
        ),
        tuple(order(shape.ffn) for _ in range(shape.blocks)),
    )


def random_tokens(vocab: int, length: int = 12, batch: int = 2, seed: int = 0) -> Tensor:
    """Token ids from the fourth of the vocabulary on, (batch, length)."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
