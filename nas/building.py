"""Build pairs: really evaluate architectures and store each score the moment it exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.cost import Budget
from nas.evaluate import Scores, evaluate
from nas.pairs import Pair, Pairs
from nas.recovery import Recipe
from nas.recovery.teacher import Teacher
from nas.recovery.training import recover
from nas.shape import Shape, Widths, architecture_of, widths_of
from nas.subnet import OutputMatrices, cut

Measure = Callable[[Widths], Scores]
"""(blocks, 3) widths -> scores of that subnet."""


@dataclass(frozen=True)
class SubnetMeter:
    """Measures subnets of one permuted parent with its repair bank: cut as views, evaluate, release."""

    parent: PreTrainedModel
    shape: Shape
    bank: OutputMatrices
    windows: Tensor
    batch_size: int

    def __call__(self, widths: Widths) -> Scores:
        """Scores of one architecture (blocks, 3)."""
        return self.score(self.subnet(widths))

    def subnet(self, widths: Widths) -> PreTrainedModel:
        """What is measured: views of the parent and of the bank."""
        return cut(self.parent, self.shape, architecture_of(widths, self.shape), self.bank)

    def score(self, subnet: PreTrainedModel) -> Scores:
        """Scores of a model on the windows."""
        return evaluate(subnet, self.windows, batch_size=self.batch_size)


@dataclass(frozen=True)
class RecoveredMeter:
    """Measures what subnets are after some steps of recovery: cut, train a copy, evaluate it, let it go.

    Every subnet sees the same windows of `training` (n, seq_len) in the same order. The ranking of subnets
    may change with training, and what is wanted is the one that ends best.
    """

    meter: SubnetMeter
    training: Tensor
    steps: int
    method: str = "full"
    recipe: Recipe = field(default_factory=Recipe)
    teacher: Teacher | None = None

    def __call__(self, widths: Widths) -> Scores:
        """Scores of one architecture (blocks, 3), recovered."""
        recovered = recover(
            self.meter.subnet(widths),
            self.training,
            method=self.method,
            steps=self.steps,
            recipe=self.recipe,
            teacher=self.teacher,
        )
        return self.meter.score(recovered.model)


def build_pairs(
    pairs: Pairs,
    measure: Measure,
    shape: Shape,
    budget: Budget,
    rows: Widths,
    origin: str,
    *,
    quiet: bool = False,
) -> list[Pair]:
    """The pairs of these architectures (n, blocks, 3), each once, of which only the unknown are evaluated.

    Shows pairs per second and the remaining time. Nothing over budget is evaluated: such a row is an error of
    the caller and raises `ValueError`.
    """
    if not budget.allows(rows).all():
        raise ValueError(f"{int((~budget.allows(rows)).sum())} of {len(rows)} proposals are over budget")
    known = {pair.architecture: pair for pair in pairs.all}
    built: dict[Architecture, Pair] = {}
    for widths in tqdm(rows, desc=f"pairs, {origin}", unit="pair", disable=quiet, leave=False):
        architecture = architecture_of(widths, shape)
        if architecture not in known:
            scores = measure(widths)
            known[architecture] = pairs.add(architecture, scores.score, origin, accuracy=scores.accuracy)
        built[architecture] = known[architecture]
    return list(built.values())


def table(pairs: list[Pair], shape: Shape) -> tuple[Widths, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """(n, blocks, 3) widths and (n,) scores of some pairs."""
    widths = np.stack([widths_of(pair.architecture, shape) for pair in pairs])
    return widths, np.array([pair.score for pair in pairs])
