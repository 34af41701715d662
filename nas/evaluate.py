"""Real evaluation: what a model scores on token windows, with the protocol of each number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scores:
    """What a model does on some windows: mean over predicted tokens, natural logarithms.

    `nll` is the negative log-likelihood, `accuracy` the fraction of next tokens that are the model's first
    choice, `kl` the mean divergence KL(parent || model) in nats (None without a parent to compare with).
    """

    nll: float
    accuracy: float
    tokens: int
    kl: float | None = None

    @property
    def score(self) -> float:
        """Larger is better."""
        return -self.nll

    @property
    def perplexity(self) -> float:
        """exp(nll), infinite where that overflows."""
        return math.inf if self.nll > 700 else math.exp(self.nll)

    def record(self) -> dict[str, Any]:
        """As plain values for a report."""
        return {**asdict(self), "perplexity": self.perplexity}


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int = 8,
    parent: PreTrainedModel | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Scores on `windows` (n, seq_len): every token after the first of each window is predicted once.

    Windows are independent of one another, sums are in float64, so that batching does not matter beyond the
    rounding of the forward pass itself. With a `parent` the divergence from it is measured too, at the price
    of a second forward pass. `progress` is told how many windows are done.
    """
    nll = hits = kl = 0.0
    tokens = 0
    for batch in windows.split(batch_size):
        batch = batch.to(model.device)
        logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()  # (tokens, vocab)
        targets = batch[:, 1:].flatten()
        nll += float(functional.cross_entropy(logits, targets, reduction="sum"))
        hits += float((logits.argmax(-1) == targets).sum())
        if parent is not None:
            reference = parent(batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            log_q, log_p = logits.log_softmax(-1), reference.log_softmax(-1)
            kl += float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
        tokens += targets.numel()
        progress(len(batch))
    return Scores(nll / tokens, hits / tokens, tokens, None if parent is None else kl / tokens)
