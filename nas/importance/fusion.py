"""Coarse and fine Taylor importance fused, module by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nas.evidence import Evidence
from nas.importance.criterion import Score
from nas.importance.scores import UnitScores, of_lines
from nas.importance.taylor import taylor

KINDS = ("groups", "queries", "channels")
TEMPERATURE = 1.0


def blend(coarse: UnitScores, fine: UnitScores, weights: Mapping[str, float]) -> UnitScores:
    """a c / sum(c) + (1 - a) f / sum(f) for each kind of unit, with the weight a of the coarse score by kind.

    Adaptive Estimation Fusion (arXiv 2403.10799); its formula is not published in a form that could be
    checked: this is a reconstruction. Normalised before the sum, because signed sums cancel and are of
    another scale. A weight of 0 gives the order of `fine`, 1 that of `coarse`. Queries share their heads'
    module with the groups, and each group's are normalised together.
    """
    parts = {}
    for kind in KINDS:
        a = weights["channels" if kind == "channels" else "heads"]
        parts[kind] = a * _share(getattr(coarse, kind)) + (1.0 - a) * _share(getattr(fine, kind))
    return UnitScores(**parts)


def fixed(attention: float, mlp: float | None = None) -> Score:
    """Fusion with given weights of the coarse score, for heads and for channels."""
    weights = {"heads": attention, "channels": attention if mlp is None else mlp}
    return lambda evidence, block: blend(*_both(evidence, block), weights)


def fused(mode: str) -> Score:
    """Fusion with weights found from the evidence itself, `reliability` or `attention` (`WEIGHTS`)."""

    def scored(evidence: Evidence, block: int) -> UnitScores:
        return blend(*_both(evidence, block), WEIGHTS[mode](evidence, block))

    return scored


def reliability(evidence: Evidence, block: int) -> dict[str, float]:
    """softmax(-CV_coarse / T, -CV_fine / T): the score that varies less from window to window counts more.

    CV is the coefficient of variation over windows of a unit's score, averaged over units; of the fine score
    it is that of its first-order part |g w|, since a Fisher diagonal is a mean over windows itself.
    """
    gradients, shape = evidence.gradients[block], evidence.shape
    spreads = {}
    for form, per_window in (("coarse", gradients.signed), ("fine", gradients.absolute)):
        count = len(next(iter(per_window.values())))
        scores = [of_lines(shape, {n: v[i].abs() for n, v in per_window.items()}) for i in range(count)]
        for kind in ("groups", "channels"):
            spreads[form, kind] = _variation(torch.stack([getattr(s, kind) for s in scores]))
    return {
        part: _softmax(-spreads["coarse", kind], -spreads["fine", kind])
        for part, kind in (("heads", "groups"), ("channels", "channels"))
    }


def attention(evidence: Evidence, block: int) -> dict[str, float]:
    """Scaled dot-product attention without parameters: tokens are both normalised score vectors of a module,
    the query is their mean; the weight is the attention to the coarse one.

    Tokens have mean 1: with sum 1 the logits vanish and every weight is a half. Among hundreds of channels
    the more uneven score takes all of the weight so, and that is the coarse one."""
    coarse, fine = _both(evidence, block)
    weights = {}
    for part, kind in (("heads", "groups"), ("channels", "channels")):
        tokens = torch.stack([_share(getattr(coarse, kind)), _share(getattr(fine, kind))])
        tokens = tokens * tokens.shape[1]  # mean 1, whatever the number of units
        logits = tokens @ tokens.mean(0) / math.sqrt(tokens.shape[1])
        weights[part] = _softmax(float(logits[0]), float(logits[1]))
    return weights


WEIGHTS: dict[str, Callable[[Evidence, int], dict[str, float]]] = {
    "reliability": reliability,
    "attention": attention,
}


def _both(evidence: Evidence, block: int) -> tuple[UnitScores, UnitScores]:
    return taylor("vector")(evidence, block), taylor("mix")(evidence, block)


def _share(scores: Tensor) -> Tensor:
    """Scores divided by their sum, evenly spread where all are 0."""
    total = scores.sum(-1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp_min(1e-300), 1.0 / scores.shape[-1])


def _variation(scores: Tensor) -> float:
    """The mean over units of the coefficient of variation over windows, of scores (windows, units)."""
    if len(scores) < 2:
        return 0.0
    mean = scores.mean(0)
    return float((scores.std(0) / mean.clamp_min(1e-300))[mean > 0].mean().nan_to_num())


def _softmax(first: float, second: float) -> float:
    return 1.0 / (1.0 + math.exp((second - first) / TEMPERATURE))
