"""Repair the few best subnets front to back and keep the one with the best real validation score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.evaluate import Scores, evaluate
from nas.prepare import Prepared
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream
from nas.shape import Shape


@dataclass(frozen=True)
class Finalist:
    """An architecture with its validation scores after front-to-back repair."""

    architecture: Architecture
    validation: Scores


def repair_and_choose(
    prepared: Prepared,
    shape: Shape,
    architectures: Sequence[Architecture],
    dense: Stream,
    validation: Tensor,
    *,
    batch_size: int,
    name: str,
    quiet: bool = False,
) -> tuple[PreTrainedModel, Finalist, list[Finalist]]:
    """The repaired model with the best validation score, its record, and the records of all.

    `dense` is the permuted parent's stream on the calibration windows. Only the best model so far is kept in
    memory.
    """
    best: tuple[PreTrainedModel, Finalist] | None = None
    tried = []
    for architecture in tqdm(
        architectures, desc=f"repair, {name}", unit="subnet", disable=quiet, leave=False
    ):
        model = repair_front_to_back(prepared.parent, shape, architecture, prepared.bank, dense)
        finalist = Finalist(architecture, evaluate(model, validation, batch_size=batch_size))
        tried.append(finalist)
        if best is None or finalist.validation.score > best[1].validation.score:
            best = model, finalist
    if best is None:
        raise ValueError("there are no architectures to choose from")
    return *best, tried
