"""Real evaluation: what a model scores on token windows, with the protocol of each number."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from nas.blockwise import logits

Divergence = Callable[[Tensor, int, int], Tensor]
"""(a model's logits (m, vocab), the number of their window, the position of the first) -> the divergence from
the parent at these positions, summed, in nats."""
Passes = Callable[[PreTrainedModel, Tensor, int], Iterator[Tensor]]
"""(a model, windows (n, seq_len), how many at a time) -> logits (batch, seq_len, vocab), batch by batch."""
TOGETHER = {True: 2**18, False: 2**26}
"""Logits that the loss is computed from at a time: on the CPU (true) so few that they stay in its cache."""


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


def evaluate(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int = 8,
    parent: PreTrainedModel | None = None,
    divergence: Divergence | None = None,
    passes: Passes = logits,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Scores on `windows` (n, seq_len): every token after the first of each window is predicted once.

    Windows are independent of one another, sums are in float64, so that batching does not matter beyond the
    rounding of the forward pass itself. With a `parent` the divergence from it is measured too, at the price
    of a second forward pass; or without one, by a function that knows what the parent says of the windows.
    Logits come from `passes`. `progress` is told how many windows are done.
    """
    return evaluate_all(
        [model], windows, batch_size=batch_size, parent=parent, divergence=divergence, passes=passes,
        progress=progress,
    )[0]  # fmt: skip


@torch.no_grad()
def evaluate_all(
    models: Sequence[PreTrainedModel],
    windows: Tensor,
    *,
    batch_size: int = 8,
    parent: PreTrainedModel | None = None,
    divergence: Divergence | None = None,
    passes: Passes = logits,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Scores]:
    """`evaluate` for several models side by side, which share the parent's forward passes."""
    sums: list[Tensor | float] = [0.0] * len(models)  # on each model's device: nothing waits for a batch
    tokens = 0
    found_by = [passes(model, windows, batch_size) for model in models]
    compared = None if parent is None else passes(parent, windows, batch_size)
    for number, batch in enumerate(windows.split(batch_size)):
        # No name keeps a batch's logits longer than they are needed: they are most of what a pass takes.
        reference = None if compared is None else next(compared)
        for index, model in enumerate(models):
            found = reference if model is parent and reference is not None else next(found_by[index])
            sums[index] = sums[index] + _batch_sums(found, batch, reference)
            if divergence is not None and parent is None:
                diverged = _diverged(found, number * batch_size, divergence)
                sums[index] = sums[index] + torch.stack([torch.zeros_like(diverged)] * 2 + [diverged])
            del found
        reference = None
        tokens += batch[:, 1:].numel()
        progress(len(batch))
    return [
        Scores(nll, hits, tokens, None if parent is None and divergence is None else kl)
        for nll, hits, kl in ((torch.as_tensor(each) / tokens).tolist() for each in sums)
    ]


def _batch_sums(found: Tensor, batch: Tensor, reference: Tensor | None) -> Tensor:
    """`summed` over a batch (windows, seq_len), of a model's logits and of the parent's, if any."""
    batch = batch.to(found.device)
    rows = max(1, TOGETHER[found.device.type == "cpu"] // found.shape[-1])
    parts = [
        summed(
            found[window, at : at + rows],
            batch[window, at + 1 : at + rows + 1],
            None if reference is None else reference[window, at : at + rows].to(found.device),
        )
        for window in range(len(batch))
        for at in range(0, batch.shape[1] - 1, rows)
    ]
    return torch.stack(parts).sum(0)


def _diverged(found: Tensor, first: int, divergence: Divergence) -> Tensor:
    """(), summed over all positions but the last of a batch's logits, whose first window has a number."""
    rows = max(1, TOGETHER[found.device.type == "cpu"] // found.shape[-1])
    parts = [
        divergence(window[at : min(at + rows, len(window) - 1)].float(), first + number, at).double()
        for number, window in enumerate(found)
        for at in range(0, len(window) - 1, rows)
    ]
    return torch.stack(parts).sum()


def summed(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """Negative log-likelihood, hits and divergence from `reference` (0 without), summed over positions.

    (3,) in float64, from logits (n, vocab) and the targets (m,) of the first m <= n positions.
    """
    logits, targets = logits[: len(targets)], targets[:, None]
    log_q = logits.log_softmax(-1, dtype=torch.float32)
    named = log_q.gather(-1, targets)
    if logits.device.type == "cpu":
        # The first choice is looked up only where the target may be it: argmax takes longer than all else.
        may = (named == log_q.amax(-1, keepdim=True)).flatten()
        hits = (logits[may].argmax(-1, keepdim=True) == targets[may]).sum()
    else:
        hits = (logits.argmax(-1, keepdim=True) == targets).sum()  # to count those that may be is to wait
    kl = log_q.new_zeros(())
    if reference is not None:
        log_p = reference[: len(targets)].log_softmax(-1, dtype=torch.float32)
        kl = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return torch.stack([-named.double().sum(), hits.double(), kl.double()])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device, or the CPU, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Give what torch keeps for later back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
