"""Repair the few best subnets and keep the one with the best real validation score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.blockwise import ends_of
from nas.evaluate import Scores, evaluate
from nas.families import blocks_of
from nas.pairs import Pair
from nas.placement import placement_of, send_home
from nas.prepare import Prepared
from nas.proposals import apart
from nas.recovery import Recipe
from nas.recovery.teacher import Teacher
from nas.recovery.training import recover
from nas.repair import Make
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream
from nas.shape import widths_of
from nas.space import SearchSpace


@dataclass(frozen=True)
class Finalist:
    """A pair, as it was chosen, with the validation scores of its subnet after repair."""

    pair: Pair
    validation: Scores


@dataclass(frozen=True)
class Contender:
    """What one way to choose a subnet ended with: the best finalist, all finalists in the order they were
    chosen, how many evaluations led to them, and what gives the repaired model, the same every time."""

    best: Finalist
    finalists: tuple[Finalist, ...]
    evaluations: int
    make: Callable[[], PreTrainedModel]

    @property
    def model(self) -> PreTrainedModel:
        """The repaired model; where its validation score was known already, it is repaired when it is first
        asked for."""
        return self.make()

    @property
    def architecture(self) -> Architecture:
        """Of the repaired model."""
        return self.best.pair.architecture


Known = Callable[[Architecture, Callable[[], Scores]], Scores]
"""The validation scores of a repaired subnet, known from before or, where they are not, computed."""


def compute_anew(architecture: Architecture, compute: Callable[[], Scores]) -> Scores:
    """Nothing is known from before."""
    return compute()


def repair_and_choose(
    prepared: Prepared,
    space: SearchSpace,
    pairs: Sequence[Pair],
    dense: Stream,
    validation: Tensor,
    *,
    finalists: int,
    batch_size: int,
    name: str,
    repair: Make = repair_front_to_back,
    stored: torch.dtype | None = None,
    known: Known = compute_anew,
    quiet: bool = False,
) -> Contender:
    """Repair the `finalists` against `dense`, the permuted parent's stream on the calibration windows, and
    keep the model with the best score on the `validation` windows.

    Finalists are the best pairs that differ from each other in a quarter of all knobs, as many as there are:
    among the best, one-pass scores tell little, and such as are much alike end much alike.

    Weights are rounded to `stored`, the dtype that checkpoints are saved in, before anything is measured.
    Only the best model so far is kept in memory; what is `known` is not repaired to be scored. Raises
    `ValueError` where there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to choose from")
    best: tuple[Finalist, Callable[[], PreTrainedModel]] | None = None
    tried = []

    def made(architecture: Architecture) -> PreTrainedModel:
        model = repair(prepared.parent, space.shape, architecture, prepared.bank, dense)
        if stored is not None:
            round_weights(model, stored)
        return model

    def scored(model: Callable[[], PreTrainedModel]) -> Scores:
        return evaluate(model(), validation, batch_size=batch_size)

    ranked = sorted(pairs, key=lambda pair: -pair.score)
    rows = space.indices(np.stack([widths_of(pair.architecture, space.shape) for pair in ranked]))
    top = apart(rows, finalists, distance=rows.shape[1] // 4)
    for pair in tqdm(
        [ranked[number] for number in top], desc=f"repair, {name}", unit="subnet", disable=quiet, leave=False
    ):
        model = cache(partial(made, pair.architecture))
        finalist = Finalist(pair, known(pair.architecture, partial(scored, model)))
        tried.append(finalist)
        if best is None or finalist.validation.score > best[0].validation.score:
            best = finalist, model
    assert best is not None
    return Contender(best[0], tuple(tried), len(pairs), best[1])


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Leave the model's weights with the values that `dtype` can hold, in the dtype that they have; what is
    shared with another model stays as it is there."""
    for modules in (*(list(block.modules()) for block in blocks_of(model)), ends_of(model)):
        changed = False
        for weight in (weight for module in modules for weight in module.parameters(recurse=False)):
            rounded = weight.data.to(dtype).to(weight.dtype)
            if not torch.equal(rounded, weight.data):
                weight.data, changed = rounded, True
        if changed:
            send_home(modules, placement_of(model))


def recovered(
    repair: Make, training: Tensor, steps: int, recipe: Recipe, teacher: Teacher, validation: Tensor
) -> Make:
    """The repair with some steps of training on `training` windows towards the parent's logits behind it;
    the weights are the best on the way by the `validation` windows."""

    def make(*given: Any) -> PreTrainedModel:
        after = recover(
            repair(*given), training, steps=steps, recipe=recipe, teacher=teacher, validation=validation
        )
        return after.model

    return make
