"""Build pairs: really evaluate architectures and store each score the moment it exists."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from data.errors import InputError, first_line
from nas.architecture import Architecture
from nas.blockwise import logits
from nas.cost import Budget
from nas.evaluate import Divergence, Passes, Scores, evaluate, free_memory, is_out_of_memory
from nas.pairs import Claim, Pair, Pairs
from nas.recovery import Recipe
from nas.recovery.teacher import Teacher
from nas.recovery.training import recover
from nas.shape import Shape, Widths, architecture_of, widths_of
from nas.subnet import OutputMatrices, cut

Measure = Callable[[Widths], Scores]
"""(blocks, 3) widths -> scores of that subnet."""


@dataclass(frozen=True)
class Estimate:
    """An architecture that was not measured in full: what its score may be, by the `tokens` that it was
    measured on. No pair: predictors may learn from it, nothing reports it as measured."""

    architecture: Architecture
    score: float
    origin: str
    tokens: int


Build = Callable[[Widths, str], tuple[list[Pair], list[Estimate]]]
"""(architectures (n, blocks, 3), origin) -> their pairs, and estimates of those that are not worth one."""
SHORTEST, LONGEST = 0.05, 2.0
"""Seconds between two looks at what other workers have stored."""


@dataclass
class SubnetMeter:
    """Measures subnets of one permuted parent with its repair bank, if any: cut as views, evaluate, release.
    With a `divergence` on the windows, that from the parent too.

    Where the device has no room for `batch_size` windows this is halved, for this subnet and all that follow,
    until one window alone does not fit either.
    """

    parent: PreTrainedModel
    shape: Shape
    bank: OutputMatrices | None
    windows: Tensor
    batch_size: int
    divergence: Divergence | None = None

    def __call__(self, widths: Widths) -> Scores:
        """Scores of one architecture (blocks, 3)."""
        return self.score(self.subnet(widths))

    def subnet(self, widths: Widths) -> PreTrainedModel:
        """What is measured: views of the parent and of the bank."""
        return cut(self.parent, self.shape, architecture_of(widths, self.shape), self.bank)

    def score(self, subnet: PreTrainedModel, passes: Passes = logits) -> Scores:
        """Scores of a model on the windows; its logits come from `passes`."""
        while True:
            try:
                return evaluate(
                    subnet, self.windows, batch_size=self.batch_size, divergence=self.divergence,
                    passes=passes,
                )  # fmt: skip
            except Exception as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
            # Behind the handler, which holds all that the failed pass had on the device.
            self.batch_size = max(1, self.batch_size // 2)
            free_memory()
            tqdm.write(f"out of memory: from here on {self.batch_size} windows at a time", file=sys.stderr)


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


def in_full(pairs: Pairs, measure: Measure, shape: Shape, budget: Budget, *, quiet: bool = False) -> Build:
    """Builds pairs by measuring every architecture on everything, as `build_pairs` does."""
    return lambda rows, origin: (build_pairs(pairs, measure, shape, budget, rows, origin, quiet=quiet), [])


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
    """The pairs of these architectures (n, blocks, 3), as `measure_each` gives them.

    Nothing over budget is evaluated: such a row is an error of the caller and raises `ValueError`.
    """
    check_allowed(budget, rows)

    def measured(architecture: Architecture) -> tuple[float, Mapping[str, float]]:
        scores = measure(widths_of(architecture, shape))
        return scores.score, {"accuracy": scores.accuracy}

    return measure_each(pairs, [architecture_of(row, shape) for row in rows], measured, origin, quiet=quiet)


def check_allowed(budget: Budget, rows: Widths) -> None:
    """Raise `ValueError` where any of some architectures (n, blocks, 3) is over budget."""
    if not budget.allows(rows).all():
        raise ValueError(f"{int((~budget.allows(rows)).sum())} of {len(rows)} proposals are over budget")


def measure_each(
    pairs: Pairs,
    architectures: Sequence[Architecture],
    measure: Callable[[Architecture], tuple[float, Mapping[str, float]]],
    origin: str,
    *,
    quiet: bool = False,
    least: int = 1,
) -> list[Pair]:
    """The pairs of these architectures in this order, each once, of which only the unknown are measured.

    Workers that share the store share the work: each measures what no other does, and all return the same
    once the last pair is there. `measure` gives a score and what else was measured. An architecture that
    fails again and again is left out; `InputError` where fewer than `least` are left. Shows pairs per
    second, of all workers, and the remaining time.
    """
    wanted = list(dict.fromkeys(architectures))
    with tqdm(total=len(wanted), desc=f"pairs, {origin}", unit="pair", disable=quiet, leave=False) as bar:
        pause = SHORTEST
        while True:
            claim = pairs.take(wanted, origin)
            known, failures = pairs.among(wanted), pairs.failures
            bar.update(sum(each in known or each in failures for each in wanted) - bar.n)
            if claim is not None:
                pause = SHORTEST
                with claim:
                    _measure_one(claim, measure)
            elif all(each in known or each in failures for each in wanted):
                break
            else:
                bar.set_postfix_str(f"waiting for {', '.join(pairs.workers)}")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
    built = [known[each] for each in wanted if each in known]
    lost = [each for each in wanted if each not in known]
    if lost:
        said = f"{len(lost)} of {len(wanted)} subnets could not be measured, {lost[0].digest} because "
        if len(built) < least:
            raise InputError(f"{said}{failures[lost[0]]}; its parent or its repair is broken, or too large")
        tqdm.write(f"{said}{failures[lost[0]]}; they are left out", file=sys.stderr)
    return built


def _measure_one(claim: Claim, measure: Callable[[Architecture], tuple[float, Mapping[str, float]]]) -> None:
    try:
        score, more = measure(claim.architecture)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        claim.fail(f"out of memory: {first_line(error)}")
    else:
        claim.store(score, **more)


def table(
    pairs: Sequence[Pair | Estimate], shape: Shape
) -> tuple[Widths, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """(n, blocks, 3) widths and (n,) scores of some pairs, or of estimates."""
    widths = np.stack([widths_of(pair.architecture, shape) for pair in pairs])
    return widths, np.array([pair.score for pair in pairs])
