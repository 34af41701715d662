"""What a recovery minimises: cross-entropy, or the divergence from the parent's next-token distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Reference:
    """A teacher's distribution p at n positions, at one temperature, in natural logarithms.

    `log_p` (n, vocab) in the order of the vocabulary; or, with `indices` (n, k), `log_p` (n, k) of those
    tokens and `log_rest` (n,) of all other tokens together.
    """

    log_p: Tensor
    indices: Tensor | None = None
    log_rest: Tensor | None = None


def divergence(logits: Tensor, reference: Reference) -> Tensor:
    """Mean over positions of KL(p || q) in nats, q = softmax(logits), logits (n, vocab).

    With k tokens and a rest, it is the divergence between the two distributions over k + 1 cells, the k
    tokens one by one and all others as one:

        sum_i p_i (log p_i - log q_i)  +  r (log r - log s),   r = 1 - sum_i p_i,   s = 1 - sum_i q_i.

    By the log-sum inequality it is at most the divergence over the vocabulary, and equal where q/p is the
    same for all tokens of the rest (so always where these are one or none); it is 0 only if the k tokens and
    the rest have the same probabilities.
    """
    if reference.indices is None or reference.log_rest is None:
        log_q = logits.log_softmax(-1)
        return functional.kl_div(log_q, reference.log_p, reduction="sum", log_target=True) / len(logits)
    cells, log_p = logits.gather(-1, reference.indices), reference.log_p
    if reference.indices.shape[-1] < logits.shape[-1]:
        # Not 1 - sum: a rest of 1e-6 would drown in the rounding of the sum.
        others = logits.scatter(-1, reference.indices, -torch.inf).logsumexp(-1, keepdim=True)
        cells = torch.cat([cells, others], dim=-1)
        # Where nothing is left, 0 times a finite number.
        log_p = torch.cat([log_p, reference.log_rest.clamp(min=-1e4)[:, None]], dim=-1)
    return functional.kl_div(cells.log_softmax(-1), log_p, reduction="sum", log_target=True) / len(logits)


def objective(
    logits: Tensor, targets: Tensor, reference: Reference | None, temperature: float, alpha: float
) -> Tensor:
    """Mean loss per predicted token in nats, of logits (n, vocab) and targets (n,).

    Without a reference the cross-entropy CE; with one, alpha CE + (1 - alpha) T^2 KL(p_T || q_T), both
    softened by the temperature T (Hinton et al., arXiv 1503.02531, section 2: T^2 keeps the gradient's size).
    """
    logits = logits.float()
    if reference is None:
        return functional.cross_entropy(logits, targets)
    loss = (1 - alpha) * temperature**2 * divergence(logits / temperature, reference)
    return loss + alpha * functional.cross_entropy(logits, targets) if alpha else loss
